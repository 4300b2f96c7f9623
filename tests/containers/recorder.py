"""Run in a container's network from outside it: every name that any process there looks up, and whom it calls.

    nsenter --net=/proc/PID/ns/net python -S recorder.py OUT

One JSON line for each new thing: {"asks": NAME} or {"calls": [ADDRESS, PORT]}. Only the standard library.
"""

import json
import socket
import struct
import sys

ANY_PROTOCOL = 3
UDP, TCP, SYN, ACK = 17, 6, 0x02, 0x10
RESOLVER = "127.0.0.11"  # Docker's own, in every container; it moves the port, so the address is what counts


def question(payload: bytes) -> str | None:
    """The name that a DNS query asks for; None for an answer or something else."""
    if len(payload) < 17 or payload[2] & 0x80:
        return None
    labels, at = [], 12
    while at < len(payload) and 0 < payload[at] < 64:
        labels.append(payload[at + 1 : at + 1 + payload[at]].decode("ascii", "backslashreplace"))
        at += 1 + payload[at]
    return ".".join(labels).lower()


def read(packet: bytes) -> dict[str, object] | None:
    if packet[0] >> 4 == 4:
        protocol, rest = packet[9], packet[(packet[0] & 15) * 4 :]
        target = socket.inet_ntop(socket.AF_INET, packet[16:20])
    elif packet[0] >> 4 == 6:
        protocol, rest = packet[6], packet[40:]
        target = socket.inet_ntop(socket.AF_INET6, packet[24:40])
    else:
        return None
    if protocol == UDP:
        (port,) = struct.unpack("!H", rest[2:4])
        if target == RESOLVER or port == 53:
            name = question(rest[8:])
            return None if name is None else {"asks": name}
        source = socket.inet_ntop(socket.AF_INET, packet[12:16]) if packet[0] >> 4 == 4 else ""
        return None if source == RESOLVER else {"calls": [target, port]}
    if protocol == TCP and rest[13] & SYN and not rest[13] & ACK:
        (port,) = struct.unpack("!H", rest[2:4])
        return {"calls": [target, port]}
    return None


def main(out: str) -> None:
    listener = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.ntohs(ANY_PROTOCOL))
    seen: set[str] = set()
    with open(out, "a", buffering=1) as file:
        file.write('{"listens": true}\n')
        while True:
            packet, (_, protocol, *_) = listener.recvfrom(65535)
            if protocol not in (0x0800, 0x86DD) or not packet:
                continue
            try:
                found = read(packet)
            except (IndexError, struct.error):
                found = {"unread": packet[:64].hex()}
            line = json.dumps(found)
            if found is not None and line not in seen:
                seen.add(line)
                file.write(line + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
