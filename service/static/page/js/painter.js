/** A mask painted with mouse, pen, finger or keys: white where something is to act. */

import { useEffect, useMemo, useRef, useState } from "../vendor/hooks.js";
import { Button, html } from "./elements.js";
import { useModal } from "./focus.js";

const MOST_UNDO = 20;
/** A mask is painted on at most so many pixels a side, and sent in the size of its picture. */
const MOST_SIDE = 1024;
const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const INK = "#4f46e5";

function canvasOf(width, height) {
  return Object.assign(document.createElement("canvas"), { width, height });
}

/** White on black, as the service reads it. */
function maskOf(painted, width, height) {
  const white = canvasOf(painted.width, painted.height);
  const ink = white.getContext("2d");
  ink.drawImage(painted, 0, 0);
  ink.globalCompositeOperation = "source-in";
  ink.fillStyle = "#fff";
  ink.fillRect(0, 0, white.width, white.height);
  const out = canvasOf(width, height);
  const context = out.getContext("2d");
  context.fillStyle = "#000";
  context.fillRect(0, 0, out.width, out.height);
  context.drawImage(white, 0, 0, width, height);
  return new Promise((resolve) => out.toBlob(resolve, "image/png"));
}

/**
 * Paint what an existing mask marks, as the service reads it: what is transparent where `clears`
 * and the file has anything transparent, otherwise what is white, over black.
 */
async function load(context, file, clears) {
  const { width, height } = context.canvas;
  const mask = canvasOf(width, height).getContext("2d");
  mask.drawImage(await createImageBitmap(file), 0, 0, width, height);
  const pixels = mask.getImageData(0, 0, width, height);
  const { data } = pixels;
  const byAlpha = clears && data.some((value, at) => at % 4 === 3 && value < 255);
  for (let at = 0; at < data.length; at += 4) {
    const [red, green, blue, alpha] = data.subarray(at, at + 4);
    const light = (0.299 * red + 0.587 * green + 0.114 * blue) * (alpha / 255);
    data.set([0x4f, 0x46, 0xe5, byAlpha ? 255 - alpha : light], at);
  }
  context.putImageData(pixels, 0, 0);
}

/**
 * A dialog that paints a mask over the picture at `url`, or over nothing. `full` is its width and
 * height in pixels; `onSave` gets the PNG. `clears` is for a mask that may mark by transparency.
 */
export function Painter({ title, hint, url, full, mask, clears, onSave, onClose }) {
  const [width, height] = useMemo(() => {
    const ratio = Math.min(1, MOST_SIDE / Math.max(...full));
    return full.map((side) => Math.max(1, Math.round(ratio * side)));
  }, full);
  const dialog = useModal();
  const canvas = useRef();
  const input = useRef();
  const undo = useRef([]);
  const last = useRef(null);
  const [size, setSize] = useState(Math.max(8, Math.round(Math.min(width, height) / 8)));
  const [erases, setErases] = useState(false);
  const [cursor, setCursor] = useState(null);
  const [problem, setProblem] = useState(null);
  const context = () => canvas.current.getContext("2d", { willReadFrequently: true });

  useEffect(() => {
    canvas.current.focus();
    if (mask?.file) load(context(), mask.file, clears);
  }, []);

  const remember = () => {
    undo.current.push(context().getImageData(0, 0, width, height));
    if (undo.current.length > MOST_UNDO) undo.current.shift();
  };
  const line = (from, to) => {
    const ink = context();
    ink.globalCompositeOperation = erases ? "destination-out" : "source-over";
    Object.assign(ink, { strokeStyle: INK, lineWidth: size, lineCap: "round" });
    ink.beginPath();
    ink.moveTo(...from);
    ink.lineTo(to[0] + 0.01, to[1]); // a line of no length would leave nothing
    ink.stroke();
    ink.globalCompositeOperation = "source-over";
  };
  const placeOf = (event) => {
    const box = canvas.current.getBoundingClientRect();
    return [
      ((event.clientX - box.x) * width) / box.width,
      ((event.clientY - box.y) * height) / box.height,
    ];
  };
  const start = (event) => {
    canvas.current.setPointerCapture(event.pointerId);
    remember();
    setCursor(null);
    last.current = placeOf(event);
    line(last.current, last.current);
  };
  const move = (event) => {
    if (!last.current) return;
    const place = placeOf(event);
    line(last.current, place);
    last.current = place;
  };
  const onKey = (event) => {
    const place = cursor ?? [width / 2, height / 2];
    if (KEYS[event.key]) {
      const [x, y] = KEYS[event.key];
      const reach = size / 2;
      setCursor([
        Math.min(width, Math.max(0, place[0] + x * reach)),
        Math.min(height, Math.max(0, place[1] + y * reach)),
      ]);
    } else if (event.key === " ") {
      remember();
      line(place, place);
      setCursor(place);
    } else return;
    event.preventDefault();
  };
  const loadFile = async (event) => {
    const [file] = event.target.files;
    event.target.value = "";
    remember();
    try {
      await load(context(), file, clears);
      setProblem(null);
    } catch {
      undo.current.pop();
      setProblem(`${file.name} is not a picture that this browser can read.`);
    }
  };
  const all = (operation) => () => {
    remember();
    const ink = context();
    ink.globalCompositeOperation = operation;
    ink.fillStyle = INK;
    ink.fillRect(0, 0, width, height);
    ink.globalCompositeOperation = "source-over";
  };
  const save = async () => onSave(await maskOf(canvas.current, ...full));
  const ring = cursor && {
    left: `${(100 * cursor[0]) / width}%`,
    top: `${(100 * cursor[1]) / height}%`,
    width: `${(100 * size) / width}%`,
  };
  const shape = {
    aspectRatio: `${width} / ${height}`,
    width: `min(100%, ${(45 * width) / height}vh)`,
  };
  return html`<dialog ref=${dialog} class="painter" aria-labelledby="painter-title" onClose=${onClose}>
    <h2 id="painter-title">${title}</h2>
    <p class="help" id="painter-hint">${hint} With the keyboard: arrow keys move the brush, Space paints.</p>
    <div class="easel" style=${shape}>
      ${url && html`<img src=${url} alt="" />`}
      <canvas ref=${canvas} width=${width} height=${height} tabindex="0" role="application" aria-label="Mask"
        aria-describedby="painter-hint" onPointerDown=${start} onPointerMove=${move}
        onPointerUp=${() => (last.current = null)} onPointerCancel=${() => (last.current = null)} onKeyDown=${onKey}></canvas>
      ${ring && html`<span class="ring" style=${ring}></span>`}
    </div>
    <div class="row tools">
      <label class="brush">Brush <input type="range" min="4" max=${Math.round(Math.min(width, height) / 2)} value=${size}
        onInput=${(event) => setSize(event.target.valueAsNumber)} /></label>
      <label class="check"><input type="checkbox" checked=${erases} onChange=${(event) => setErases(event.target.checked)} /> Erase</label>
      <${Button} kind="small" label="Load" quiet="Load a mask from a file" onClick=${() => input.current.click()} />
      <input ref=${input} type="file" accept="image/png,image/jpeg,image/webp" hidden onChange=${loadFile} />
      <${Button} kind="small" label="Undo" onClick=${() => undo.current.length && context().putImageData(undo.current.pop(), 0, 0)} />
      <${Button} kind="small" label="Fill" onClick=${all("source-over")} />
      <${Button} kind="small" label="Clear" onClick=${all("destination-out")} />
      <${Button} kind="small" label="Invert" onClick=${all("xor")} />
    </div>
    ${problem && html`<p class="field-error" role="alert">${problem}</p>`}
    <div class="row end">
      <${Button} label="Cancel" onClick=${() => dialog.current.close()} />
      <${Button} kind="primary" label="Use this mask" onClick=${save} />
    </div>
  </dialog>`;
}
