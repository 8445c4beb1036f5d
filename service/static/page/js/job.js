/** A job as it goes on: its record, its progress and previews, and its pictures. */

import { useEffect, useState } from "../vendor/hooks.js";
import { follow, getJson, getPicture } from "./api.js";

const LOOK_AGAIN_MS = 3000;
const FINAL = new Set(["succeeded", "failed", "canceled", "expired"]);

export const isFinal = (view) => FINAL.has(view.status);

const urlOf = ({ data, content_type: type }) =>
  URL.createObjectURL(
    new Blob([Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0))], { type }),
  );

/** Follow a job; `update` gets functions from the state before to the state after. */
async function watch(jobId, signal, update) {
  const set = (patch) => update((before) => ({ ...before, ...patch }));
  const look = async () => {
    const view = await getJson(`jobs/${jobId}`, { signal });
    set({ view, interrupted: false });
    return view;
  };
  if (isFinal(await look())) return;
  // The place in the queue and the estimate come with no event.
  const timer = setInterval(() => look().catch(() => {}), LOOK_AGAIN_MS);
  signal.addEventListener("abort", () => clearInterval(timer));
  try {
    for await (const { name, data } of follow(jobId, signal)) {
      if (name === "interrupted") set({ interrupted: true });
      else if (name === "status") await look().catch(() => {});
      else if (name === "done") set({ view: data, interrupted: false });
      else if (name === "preview") set({ preview: urlOf(data), interrupted: false });
      else if (name === "progress") {
        update((before) => ({
          ...before,
          interrupted: false,
          view: { ...before.view, status: "processing", progress: data },
        }));
      }
    }
  } finally {
    clearInterval(timer);
  }
}

/** `{view, preview, interrupted, problem}` of the job with this id; looked at anew with each value of `again`. */
export function useJob(jobId, again) {
  const [state, setState] = useState({});
  useEffect(() => {
    setState({ id: jobId });
    if (!jobId) return undefined;
    const stop = new AbortController();
    const update = (change) => {
      if (!stop.signal.aborted) setState(change);
    };
    watch(jobId, stop.signal, update).catch((problem) =>
      update((before) => ({ ...before, problem })),
    );
    return () => stop.abort();
  }, [jobId, again]);
  useEffect(() => () => state.preview && URL.revokeObjectURL(state.preview), [state.preview]);
  return state.id === jobId ? state : {};
}

/**
 * `{blob, url}` of each of a finished job's pictures, fetched with the API key; `{problem}` where
 * that failed. `kind` is `images`, or `maps` for the ControlNet maps that were made.
 */
export function usePictures(view, kind) {
  const [pictures, setPictures] = useState([]);
  const id = view.status === "succeeded" ? view.id : null;
  useEffect(() => {
    setPictures([]);
    if (!id) return undefined;
    const urls = [];
    let ended = false;
    const load = async (_, number) => {
      let picture;
      try {
        const blob = await getPicture(`jobs/${id}/${kind}/${number}`);
        picture = { blob, url: URL.createObjectURL(blob) };
        urls.push(picture.url);
      } catch (problem) {
        picture = { problem };
      }
      if (!ended) setPictures((before) => Object.assign([...before], { [number]: picture }));
    };
    (view[kind] ?? []).forEach(load);
    return () => {
      ended = true;
      urls.forEach((url) => URL.revokeObjectURL(url));
    };
  }, [id]);
  return pictures;
}
