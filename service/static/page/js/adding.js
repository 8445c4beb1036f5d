/** Pictures are added to the form: as many as it takes, and it says which it did not take. */

import { useRef, useState } from "../vendor/hooks.js";
import { count } from "./elements.js";
import { readSettings } from "./metadata.js";
import { asControl, asImage, asInit, pictureOf } from "./request.js";

const isPicture = (file) => file.type.startsWith("image/") || !file.type;

const leftOut = (number, most) =>
  `At most ${count(most, "picture")}: ${number} ${number === 1 ? "was" : "were"} left out.`;

/** `{adders, notes, setNotes}`: what adds files at each place, and what is said of the last ones. */
export function useAdders({ schema, state, change, onAdded, onMadeHere }) {
  const [notes, setNotes] = useState({});
  /** Files may be pasted or dropped by a listener that is older than the form. */
  const now = useRef();
  now.current = state;

  const admitted = (field, files, taken) => {
    const { most } = schema.fields[field];
    const pictures = files.filter(isPicture);
    const over = pictures.length - Math.max(0, most - taken);
    const others = files.filter((file) => !isPicture(file)).map(({ name }) => name);
    const said = [
      over > 0 && leftOut(over, most),
      others.length > 0 && `Not a picture: ${others.join(", ")}.`,
    ];
    setNotes({ [field]: said.filter(Boolean).join(" ") });
    return pictures.slice(0, Math.max(0, most - taken));
  };
  const add = (field, key, as) => async (files) => {
    const wanted = admitted(field, files, now.current[key].length);
    const pictures = await Promise.all(wanted.map((file) => pictureOf(file)));
    const { most } = schema.fields[field];
    change((before) => ({ [key]: [...before[key], ...pictures.map(as)].slice(0, most) }));
    onAdded();
  };
  const addInit = async (files) => {
    const [file] = admitted("init_image", files, 0);
    if (!file) return;
    const picture = await pictureOf(file);
    change({ init: asInit(picture) });
    onAdded();
  };
  /** One that was made here may be wanted for its settings, unless `asks` is false. */
  const addImages = async (files, asks = true) => {
    const { most } = schema.fields.image;
    for (const file of admitted("image", files, now.current.images.length)) {
      const settings = asks ? await readSettings(file) : null;
      const picture = await pictureOf(file);
      if (settings) onMadeHere(settings, picture);
      else change(({ images }) => ({ images: [...images, asImage(picture)].slice(0, most) }));
    }
    onAdded();
  };
  const adders = {
    images: addImages,
    controls: add("control_image", "controls", asControl),
    negatives: add("negative_image", "negatives", (one) => one),
    init: addInit,
  };
  return { adders, notes, setNotes };
}
