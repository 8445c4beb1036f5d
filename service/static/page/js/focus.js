/** Where the focus goes when what had it is removed: without this, to the start of the page. */

import { useEffect, useLayoutEffect, useRef } from "../vendor/hooks.js";

export const isFocusLost = () => [null, document.body].includes(document.activeElement);

/** A modal dialog, opened when it appears; when it goes, the focus is where it was before. */
export function useModal() {
  const dialog = useRef();
  useEffect(() => {
    const opener = document.activeElement;
    dialog.current.showModal();
    return () => {
      if (!isFocusLost()) return;
      const stands = opener !== document.body && opener.isConnected;
      (stands ? opener : document.querySelector(".generate"))?.focus();
    };
  }, []);
  return dialog;
}

/**
 * For an element that may be removed with the focus in it. Its successor is what `next` finds
 * beside it or, where nothing is left there, the first `selector` of the group around it or of the
 * page.
 */
export function useSuccessor(selector, next = () => null) {
  const element = useRef();
  useLayoutEffect(
    () => () => {
      const gone = element.current;
      if (!gone?.contains(document.activeElement)) return;
      const group = gone.closest("section, details, main");
      const beside = next(gone);
      const rest = () => group.querySelector(selector) ?? document.querySelector(selector);
      setTimeout(() => (beside?.isConnected ? beside : rest())?.focus());
    },
    [],
  );
  return element;
}

/** Move the focus to the control of a field, out of whatever it is folded into. */
export function focusField(name) {
  setTimeout(() => {
    const owner = name.startsWith("image_")
      ? "image"
      : name.startsWith("control_")
        ? "control_image"
        : name;
    const control = document.getElementById(`f-${name}`) ?? document.getElementById(`f-${owner}`);
    for (let box = control?.closest("details"); box; box = box.parentElement.closest("details"))
      box.open = true;
    control?.focus({ preventScroll: true });
    control?.scrollIntoView({ block: "center" });
  });
}
