/* Volumes by NiiVue, one drawing for each frame: one cursor for all, window and level, what lies over a synthetic one. */
"use strict";
document.addEventListener("DOMContentLoaded", async () => {
  const frames = [...document.querySelectorAll(".frame[data-image]")];
  const say = document.getElementById("where"), all = [];
  if (!frames.length || typeof niivue === "undefined") return;
  const state = () => new URLSearchParams(location.hash.slice(1));
  const keep = (name, value) => { const now = state(); now.set(name, value); history.replaceState(null, "", "#" + now); };
  const probe = document.createElement("canvas").getContext("webgl2");
  if (!probe) { document.getElementById("nothing").hidden = false; return; }
  const info = probe.getExtension("WEBGL_debug_renderer_info");
  const card = String(probe.getParameter(info ? info.UNMASKED_RENDERER_WEBGL : probe.RENDERER));
  probe.getExtension("WEBGL_lose_context")?.loseContext();
  const half = frames.some((one) => one.dataset.large) && /swiftshader|llvmpipe|software|basic render/i.test(card) && state().get("full") !== "1";
  document.getElementById("software").hidden = !half;
  document.getElementById("fine").addEventListener("click", () => { keep("full", "1"); location.reload(); });

  const VIEWS = { planes: [3, 0], all: [3, 1], axial: [0, 0], coronal: [1, 0], sagittal: [2, 0], solid: [4, 1] };
  const coarse = (figure) => half && figure.dataset.large === "1";
  const address = (figure, url) => coarse(figure) ? `${url}?half=1` : url;
  const named = (figure, gz) => coarse(figure) || !gz ? "volume.nii" : "volume.nii.gz";

  class Frame {
    constructor(figure) {
      this.figure = figure;
      this.canvas = figure.querySelector("canvas");
      this.nv = new niivue.Niivue({
        backColor: [0, 0, 0, 1], crosshairColor: [0.95, 0.72, 0.2, 0.9], crosshairWidth: 0.6, crosshairWidthUnit: "mm", crosshairGap: 6, show3Dcrosshair: true,
        multiplanarShowRender: 0, multiplanarLayout: 0, dragAndDropEnabled: false, logLevel: "error", gradientOrder: 1,
        loadingText: "", dragMode: 1, yoke3Dto2DZoom: true, isOrientationTextVisible: true, fontMinPx: 14, isResizeCanvas: true,
      });
    }
    async load() {
      const { image, gz } = this.figure.dataset;
      await this.nv.attachToCanvas(this.canvas, false);
      await this.nv.loadVolumes([{ url: address(this.figure, image), name: named(this.figure, gz === "1"), colormap: "gray" }]);
      const volume = this.nv.volumes[0];
      this.range = [volume.robust_min ?? volume.cal_min, volume.robust_max ?? volume.cal_max];
      this.figure.dataset.ready = "1";
      this.controls();
    }
    controls() {
      const find = (name) => this.figure.querySelector(`[${name}]`);
      const low = find("data-low"), high = find("data-high");
      const level = () => {
        const [from, to] = this.range, part = (field) => from + (to - from) * field.value / 100;
        const volume = this.nv.volumes[0];
        volume.cal_min = part(low); volume.cal_max = Math.max(part(high), part(low) + (to - from) / 200);
        this.nv.updateGLVolume();
      };
      for (const field of [low, high]) field.addEventListener("change", level);
      this.nv.onIntensityChange = (volume) => {
        const share = (value) => Math.round(100 * (value - this.range[0]) / (this.range[1] - this.range[0]));
        low.value = share(volume.cal_min); high.value = share(volume.cal_max);
      };
      for (const box of this.figure.querySelectorAll("[data-layer]"))
        box.addEventListener("change", () => this.layer(box.dataset.layer, box.checked));
      find("data-threshold")?.addEventListener("change", () => { if (this.over === "sd") this.threshold(); });
      find("data-blink")?.addEventListener("click", (event) => this.blink(event.currentTarget));
    }
    async layer(kind, on) {
      for (const box of this.figure.querySelectorAll("[data-layer]")) if (box.dataset.layer !== kind) box.checked = false;
      while (this.nv.volumes.length > 1) this.nv.removeVolume(this.nv.volumes[1]);
      this.over = on ? kind : null;
      if (!on) { this.nv.updateGLVolume(); return; }
      const url = kind === "sd" ? address(this.figure, this.figure.dataset.sd) : this.figure.dataset.difference;
      await this.nv.addVolumeFromUrl({ url, name: kind === "sd" ? named(this.figure, true) : "volume.nii", colormap: "inferno", opacity: 0.75 });
      this.most = kind === "sd" ? this.nv.volumes[1].global_max : 0.5;
      this.threshold();
      this.figure.dataset.over = kind;
    }
    threshold() {
      const volume = this.nv.volumes[1], field = this.figure.querySelector("[data-threshold]");
      const share = this.over === "sd" && field ? field.value / 100 : 0.1;
      volume.cal_min = Math.max(this.most * share, 1e-9); volume.cal_max = Math.max(this.most, volume.cal_min * 1.01);
      volume.colormapType = 1;  // what is below is not drawn
      this.nv.updateGLVolume();
    }
    async blink(button) {
      const on = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(on));
      clearInterval(this.timer);
      const caption = this.figure.querySelector(".stamp"), said = caption.textContent;
      if (!on) { while (this.nv.volumes.length > 1) this.nv.removeVolume(this.nv.volumes[1]); this.nv.updateGLVolume(); caption.hidden = false; return; }
      await this.layer("", false);
      const { truth, truthGz } = this.figure.dataset;
      await this.nv.addVolumeFromUrl({ url: address(this.figure, truth), name: named(this.figure, truthGz === "1"), colormap: "gray", opacity: 0 });
      let shown = false;
      this.timer = setInterval(() => { shown = !shown; this.nv.setOpacity(1, shown ? 1 : 0); caption.hidden = shown; }, 700);
    }
    view(name) {
      const [slices, render] = VIEWS[name];
      this.nv.opts.multiplanarShowRender = render;
      this.nv.setSliceType(slices);
    }
  }

  function tell(from) {
    const mm = from.nv.frac2mm(from.nv.scene.crosshairPos);
    say.textContent = `x ${mm[0].toFixed(0)}  y ${mm[1].toFixed(0)}  z ${mm[2].toFixed(0)} mm`;
    keep("at", [...mm].slice(0, 3).map((value) => value.toFixed(1)).join(","));
  }
  function go(mm) {
    for (const one of all) { one.nv.scene.crosshairPos = one.nv.mm2frac(mm); one.nv.drawScene(); }
    if (all.length) tell(all[0]);
  }
  function show(name) {
    keep("view", name);
    for (const button of document.querySelectorAll("[data-view]")) button.setAttribute("aria-pressed", String(button.dataset.view === name));
    for (const one of all) one.view(name);
  }

  const started = performance.now();
  for (const figure of frames) {
    const one = new Frame(figure);
    try { await one.load(); all.push(one); }
    catch (error) { figure.dataset.failed = "1"; figure.querySelector("figcaption").append(" – " + error.message); }
  }
  for (const one of all) {
    one.nv.broadcastTo(all.filter((other) => other !== one).map((other) => other.nv), { "2d": true, "3d": true });
    one.nv.onLocationChange = () => tell(one);
  }
  for (const button of document.querySelectorAll("[data-view]")) button.addEventListener("click", () => show(button.dataset.view));
  document.getElementById("home").addEventListener("click", () => { for (const one of all) { one.nv.scene.crosshairPos = [0.5, 0.5, 0.5]; one.nv.drawScene(); } });
  const sides = document.getElementById("sides");
  const swap = (on) => { sides.setAttribute("aria-pressed", String(on)); for (const one of all) one.nv.setRadiologicalConvention(on); };
  sides.addEventListener("click", () => { const on = sides.getAttribute("aria-pressed") !== "true"; keep("sides", on ? "1" : "0"); swap(on); });
  const now = state();
  if (now.get("sides") === "1") swap(true);
  if (VIEWS[now.get("view")]) show(now.get("view"));
  const at = (now.get("at") || "").split(",").map(Number);
  if (at.length === 3 && at.every(Number.isFinite)) go(at);
  document.getElementById("frames").dataset.ready = String(Math.round(performance.now() - started));

  document.addEventListener("keydown", (event) => {
    if (event.target.closest("input, textarea, select") || event.ctrlKey || event.metaKey || event.altKey) return;
    const step = { ArrowUp: [0, 0, 1], ArrowDown: [0, 0, -1], ArrowLeft: [-1, 0, 0], ArrowRight: [1, 0, 0], PageUp: [0, 1, 0], PageDown: [0, -1, 0] }[event.key];
    if (step && all.length) {
      event.preventDefault();
      for (const one of all) one.nv.moveCrosshairInVox(...step);
      tell(all[0]);
    }
    const way = { "[": "prev", "]": "next" }[event.key];
    if (way) document.querySelector(`.steps a[rel=${way}]`)?.click();
  });
});
