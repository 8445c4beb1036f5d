/** The caller's own jobs, newest first; pictures are fetched as they come into view. */

import { useEffect, useRef, useState } from "../vendor/hooks.js";
import { getJson, getPicture } from "./api.js";
import { Button, html, Icon } from "./elements.js";
import { useSuccessor } from "./focus.js";

const AT_ONCE = 12;
/** How many are shown, kept in this tab. */
const SHOWN = "imageprompt.history";

/** The first picture of a job once its place is in view. */
function useThumb(job, element) {
  const [url, setUrl] = useState(null);
  const has = job.images.length > 0;
  useEffect(() => {
    if (!has) return undefined;
    let made = null;
    let ended = false;
    const observer = new IntersectionObserver(async ([entry]) => {
      if (!entry.isIntersecting) return;
      observer.disconnect();
      const blob = await getPicture(`jobs/${job.id}/images/0`).catch(() => null);
      if (blob && !ended) setUrl((made = URL.createObjectURL(blob)));
    });
    observer.observe(element.current);
    return () => {
      ended = true;
      observer.disconnect();
      if (made) URL.revokeObjectURL(made);
    };
  }, [job.id, has]);
  return url;
}

const WORDS = {
  queued: "Queued",
  processing: "In progress",
  succeeded: "",
  failed: "Failed",
  canceled: "Canceled",
  expired: "Expired",
};

function Entry({ job, current, onOpen }) {
  const element = useRef();
  const url = useThumb(job, element);
  const when = new Date(job.created_at).toLocaleString([], {
    dateStyle: "short",
    timeStyle: "short",
  });
  const text = job.input.prompt || `Seed ${job.input.seed}`;
  return html`<li ref=${element}>
    <button type="button" class="entry" aria-current=${current ? "true" : undefined} title=${when} onClick=${onOpen}>
      <span class="entry-picture">${url ? html`<img src=${url} alt="" />` : html`<${Icon} name=${job.status === "succeeded" ? "image" : "sparkle"} />`}
        ${WORDS[job.status] && html`<span class=${`badge ${job.status}`}>${WORDS[job.status]}</span>`}</span>
      <span class="entry-text">${text}</span><span class="visually-hidden">, ${when}</span>
    </button>
  </li>`;
}

function More({ onClick }) {
  const element = useSuccessor("li:last-child > .entry");
  return html`<div ref=${element}><${Button} label="Show more" onClick=${onClick} /></div>`;
}

/** `changed` is another value whenever the list may have changed. */
export function History({ current, changed, onOpen, onKey }) {
  const [jobs, setJobs] = useState(null);
  const [next, setNext] = useState(null);
  const [problem, setProblem] = useState(null);
  /** Show the jobs of `query` and following pages until there are enough, after those `before`. */
  const load = async (query, before, isEnough) => {
    try {
      let found = before;
      let rest = query;
      do {
        const page = await getJson(`jobs${rest}`);
        found = [...found, ...page.jobs];
        rest = page.next && new URL(page.next).search;
      } while (rest && !isEnough(found));
      setJobs(found);
      sessionStorage.setItem(SHOWN, found.length);
      setNext(rest);
      setProblem(null);
    } catch (error) {
      setProblem(error);
    }
  };
  useEffect(() => {
    const least = Number(sessionStorage.getItem(SHOWN));
    const has = (list) => list.some(({ id }) => id === current);
    const isAmong = has(jobs ?? []);
    const isEnough = (found) => found.length >= least && (has(found) || !isAmong);
    load(`?limit=${AT_ONCE}`, [], isEnough);
  }, [changed]);
  return html`<section class="history" aria-labelledby="history-title">
    <h2 id="history-title">Your jobs</h2>
    ${problem && html`<p class="help">${problem.status === 401 ? "This service needs an API key." : problem.detail}</p>`}
    ${problem?.status === 401 && html`<${Button} icon="key" label="Enter an API key" onClick=${onKey} />`}
    ${jobs?.length === 0 && html`<p class="help">Nothing yet. What you make will stand here.</p>`}
    ${jobs?.length > 0 && html`<ul class="entries">${jobs.map((job) => html`<${Entry} key=${job.id} job=${job} current=${job.id === current} onOpen=${() => onOpen(job.id)} />`)}</ul>`}
    ${next && html`<${More} onClick=${() => load(next, jobs, () => true)} />`}
  </section>`;
}
