"""Where an ingest takes its images from: a folder, a DICOMweb server, or whoever sends to us. All end as a folder."""

from pathlib import Path

from client.ingest.arrive.source import Folder, Source
from shared.base.errors import ConfigError


def is_web(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def is_receiver(text: str) -> bool:
    return text.startswith("receive:")


def find_source(
    text: str,
    *,
    auth_file: Path | None = None,
    studies: Path | None = None,
    dates: str = "",
    idle: float = 60.0,
    peers: tuple[str, ...] = (),
) -> Source:
    """What the command line names. The network is loaded only for whom it is for."""
    if is_web(text):
        from client.ingest.arrive.dicomweb import Web, check_url, read_authorization

        wanted = tuple(_lines(studies)) if studies is not None else ()
        return Web(url=check_url(text), authorization=read_authorization(auth_file), studies=wanted, dates=dates)
    if is_receiver(text):
        from client.ingest.arrive.receive import Receiver, parse_peer, parse_receiver

        address, port, title = parse_receiver(text)
        return Receiver(address=address, port=port, title=title, idle=idle, peers=tuple(map(parse_peer, peers)))
    return Folder(path=Path(text))


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"studies={path}: can't be read ({type(error).__name__})") from None
