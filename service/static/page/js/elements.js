/** Preact with templates instead of JSX, and the few elements that every part uses. */

import { h } from "../vendor/preact.js";
import htm from "../vendor/htm.js";

export const html = htm.bind(h);

const PATHS = {
  add: "M12 5v14M5 12h14",
  brush: "M4 20c3 0 4-1 4-3a2 2 0 0 1 4 0c0 3-3 4-8 3zM11 14 20 4",
  camera: "M4 8h3l2-3h6l2 3h3v11H4zM12 17a4 4 0 1 0 0-8 4 4 0 0 0 0 8z",
  cancel: "M6 6l12 12M18 6 6 18",
  copy: "M9 9h11v11H9zM15 9V4H4v11h5",
  download: "M12 4v11M7 11l5 5 5-5M5 20h14",
  image: "M4 5h16v14H4zM4 16l5-5 4 4 3-3 4 4M15 9h.01",
  light: "M12 16a4 4 0 1 0 0-8 4 4 0 0 0 0 8zM12 2v2M12 20v2M2 12h2M20 12h2M5 5l1.500 1.500M17.500 17.500 19 19M5 19l1.500-1.500M17.500 6.500 19 5",
  key: "M8 19a4 4 0 1 0 0-8 4 4 0 0 0 0 8zM11 12l9-9M16 7l3 3",
  auto: "M12 4a8 8 0 1 0 0 16 8 8 0 0 0 0-16zM12 4v16M12 8h6M12 12h8M12 16h6",
  dark: "M20 14a8 8 0 1 1-10-10 6.500 6.500 0 0 0 10 10z",
  again: "M20 12a8 8 0 1 1-2.500-5.800M20 4v4h-4",
  sparkle: "M12 3l2 6.500L20.500 12 14 14.500 12 21l-2-6.500L3.500 12 10 9.500z",
};

export function Icon({ name }) {
  return html`<svg class="icon" viewBox="0 0 24 24" aria-hidden="true"><path d=${PATHS[name]} /></svg>`;
}

/** A button; with `icon` before its text, or the icon alone where `quiet` gives its name. */
export function Button({ icon, label, quiet, kind = "", children, ...rest }) {
  return html`<button type="button" class=${`button ${kind}`} aria-label=${quiet} title=${quiet} ...${rest}>
    ${icon && html`<${Icon} name=${icon} />`}${label ?? children}
  </button>`;
}

/** The message of a wrong field; its control names it by `aria-describedby`. */
export function FieldError({ id, message }) {
  return message ? html`<p class="field-error" id=${id}>${message}</p>` : null;
}

/** Seconds in words that suit an estimate. */
export function duration(seconds) {
  if (seconds < 1.5) return "1 second";
  if (seconds < 90) return `${Math.round(seconds)} seconds`;
  return `${Math.round(seconds / 60)} minutes`;
}

export function count(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

/** Copy text, on a page without TLS as well, where browsers offer no clipboard. */
export async function copyText(text) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
    return;
  }
  const area = document.createElement("textarea");
  area.value = text;
  (document.querySelector("dialog[open]") ?? document.body).append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
