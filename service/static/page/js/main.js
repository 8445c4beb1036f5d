/** The page: the form at one side, what becomes of it at the other. */

import { render } from "../vendor/preact.js";
import { useCallback, useEffect, useMemo, useRef, useState } from "../vendor/hooks.js";
import { useAdders } from "./adding.js";
import { apiKey, cancelJob, generate, getJson, Problem } from "./api.js";
import { KeyDialog, MadeHereDialog } from "./dialogs.js";
import { Button, html, Icon } from "./elements.js";
import { focusField, isFocusLost } from "./focus.js";
import { Form } from "./form.js";
import { History } from "./history.js";
import { isFinal, useJob } from "./job.js";
import { Painter } from "./painter.js";
import {
  asImage,
  emptyState,
  fileNames,
  entries,
  formData,
  missing,
  pictureOf,
  remembered,
  stateOf,
} from "./request.js";
import { Schema } from "./schema.js";
import { Empty, Job, ProblemBox, spoken } from "./stage.js";
import { readable } from "./words.js";

const FORM = "imageprompt.form";
const THEMES = { auto: "as the system's", light: "light", dark: "dark" };
const NO_PROMPTS = new Set(["mask", "outline"]);
const assets = new URL("../", import.meta.url);

const jobInUrl = () => new URLSearchParams(location.hash.slice(1)).get("job");

/** Names of the examples as `[file, title, url]`: image prompts, and maps for a served ControlNet. */
function examplesOf(names, schema) {
  const types = new Set(
    schema.models.models.flatMap((model) =>
      schema.served(model.name, "controlnets", "t2i_adapters"),
    ),
  );
  const all = names.map((name) => [
    name,
    name.replace(/\.\w+$/, "").replaceAll("-", " "),
    new URL(`examples/${name}`, assets).href,
  ]);
  const kind = ([, title]) => title.split(" ").at(-1);
  return {
    images: all.filter((one) => !NO_PROMPTS.has(kind(one))),
    maps: all.filter((one) => types.has(kind(one))),
  };
}

function Theme() {
  const [theme, setTheme] = useState(document.documentElement.dataset.theme);
  const choose = () => {
    const names = Object.keys(THEMES);
    const next = names[(names.indexOf(theme) + 1) % names.length];
    document.documentElement.dataset.theme = next;
    localStorage.setItem("imageprompt.theme", next);
    setTheme(next);
  };
  return html`<${Button} icon=${theme} kind="plain" quiet=${`Colours: ${THEMES[theme]}`} onClick=${choose} />`;
}

/** What the form holds, and what is said of it; kept in this tab over a reload. */
function useForm(schema) {
  const [state, setState] = useState(emptyState);
  const change = useCallback(
    (patch) =>
      setState((before) => ({
        ...before,
        ...(typeof patch === "function" ? patch(before) : patch),
      })),
    [],
  );
  const restored = useRef(false);
  useEffect(() => {
    const text = sessionStorage.getItem(FORM);
    const restore = text ? stateOf(JSON.parse(text), schema).then(setState) : Promise.resolve();
    restore.catch(() => {}).then(() => (restored.current = true));
  }, []);
  useEffect(() => {
    if (restored.current)
      remembered(state, schema).then((found) =>
        sessionStorage.setItem(FORM, JSON.stringify(found)),
      );
  }, [state]);
  return [state, change, setState];
}

function App({ schema, examples, hasConsole }) {
  const [state, change, setState] = useForm(schema);
  const [jobId, setJobId] = useState(jobInUrl);
  const [sending, setSending] = useState(false);
  /** Known at once, before the page is drawn anew. */
  const isSending = useRef(false);
  const [canceling, setCanceling] = useState(false);
  const [problem, setProblem] = useState(null);
  const [dialog, setDialog] = useState(null);
  const [dragging, setDragging] = useState(false);
  const [keyed, setKeyed] = useState(0);
  const job = useJob(jobId, keyed);
  const stage = useRef();
  const offered = useMemo(() => examplesOf(examples, schema), []);
  const errors = useMemo(
    () => Object.fromEntries((problem?.errors ?? []).map(({ field, message }) => [field, message])),
    [problem],
  );

  const open = useCallback((id) => {
    setProblem(null);
    if (id === jobInUrl()) return;
    history.pushState(null, "", `#job=${id}`);
    // Until the job is there: or what is below, and was clicked, would jump.
    stage.current.style.minHeight = `${stage.current.offsetHeight}px`;
    setJobId(id);
    setCanceling(false);
  }, []);
  useEffect(() => {
    const follow = () => setJobId(jobInUrl());
    addEventListener("popstate", follow);
    addEventListener("hashchange", follow);
    return () => (
      removeEventListener("popstate", follow),
      removeEventListener("hashchange", follow)
    );
  }, []);

  /** To what comes of a request, unless whoever sent it is busy elsewhere. */
  const lead = () =>
    setTimeout(() => {
      if (isFocusLost() || document.activeElement.matches(".generate"))
        stage.current.focus({ preventScroll: true });
    });
  /** `refused` is the request that it was about, if any. */
  const fail = (error, refused = null) => {
    if (!(error instanceof Problem)) throw error;
    const names = refused ? fileNames(refused) : {};
    error.errors = error.errors.map((one) => readable(one, refused ?? state, schema, names));
    setProblem(error);
    if (error.status === 401) setDialog({ kind: "key", message: error.detail, refused });
    const [first] = error.errors;
    if (first) focusField(first.field);
    else if (error.status !== 401) lead();
  };

  const send = async (what) => {
    if (isSending.current) return;
    isSending.current = true;
    setSending(true);
    setProblem(null);
    setNotes({});
    if (matchMedia("(max-width: 55rem)").matches) stage.current.scrollIntoView({ block: "start" });
    try {
      const fields = await entries(what, schema);
      const field = missing(fields);
      if (field) {
        const message = "is not in this browser; remove it and add its file again";
        const errors = [{ field, message }];
        throw new Problem({ status: 422, title: "A file is missing", detail: "", errors });
      }
      open((await generate(formData(fields))).id);
      lead();
    } catch (error) {
      fail(error, what);
    } finally {
      isSending.current = false;
      setSending(false);
    }
  };
  const cancel = async () => {
    if (canceling) return;
    setCanceling(true);
    await cancelJob(jobId).catch((error) => fail(error));
    setCanceling(false);
  };
  const restore = async (input) => setState(await stateOf(input, schema));
  const again = async (seed) => {
    const same = await stateOf({ ...job.view.input, seed, num_images: 1 }, schema);
    setState(same);
    await send(same);
  };

  const { adders, notes, setNotes } = useAdders({
    schema,
    state,
    change,
    onAdded: () => setProblem(null),
    onMadeHere: (settings, picture) => setDialog({ kind: "made-here", settings, picture }),
  });
  const example = (adder) => async (name) => {
    const answer = await fetch(new URL(`examples/${name}`, assets));
    await adder([new File([await answer.blob()], name, { type: "image/png" })]);
  };

  useEffect(() => {
    const paste = (event) => {
      const files = [...(event.clipboardData?.files ?? [])];
      if (files.length) adders.images(files);
    };
    const over = (event) => {
      if (!event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      setDragging(event.type === "dragover");
    };
    const leave = (event) => event.relatedTarget === null && setDragging(false);
    const drop = (event) => {
      over(event);
      adders.images([...event.dataTransfer.files]);
    };
    const end = () => setDragging(false);
    const listeners = [
      ["paste", paste],
      ["dragover", over],
      ["dragleave", leave],
      ["drop", drop],
    ];
    listeners.forEach(([name, listener]) => document.addEventListener(name, listener));
    document.addEventListener("drop", end, true);
    return () => {
      listeners.forEach(([name, listener]) => document.removeEventListener(name, listener));
      document.removeEventListener("drop", end, true);
    };
  }, []);

  const view = job.view;
  const running = view && !isFinal(view);
  useEffect(() => {
    if (view || job.problem) stage.current.style.minHeight = "";
  }, [view?.id, job.problem]);
  const percent = running ? Math.round((100 * view.progress.step) / view.progress.total) : null;
  useEffect(() => {
    document.title = running ? `${percent} % · imageprompt` : "imageprompt";
  }, [running, percent]);

  const painted = async (blob) => {
    const name = `${dialog.what.kind}-mask.png`;
    const mask = await pictureOf(new File([blob], name, { type: "image/png" }));
    if (dialog.what.kind === "init") change(({ init }) => ({ init: { ...init, mask } }));
    else
      change(({ images }) => ({
        images: images.map((one, index) => (index === dialog.what.index ? { ...one, mask } : one)),
      }));
    setDialog(null);
  };
  const close = () => setDialog(null);
  const keyIsSet = () => {
    close();
    setProblem(null);
    setKeyed(keyed + 1);
    if (dialog.refused && apiKey()) send(dialog.refused);
  };
  const shownProblem = problem ?? job.problem;

  return html`
    <header class="bar">
      <h1><img src=${new URL("icon.svg", assets).href} alt="" width="24" height="24" /> imageprompt</h1>
      <nav aria-label="Service">
        ${hasConsole && html`<a class="button plain" href="docs">API</a>`}
        <${Button} icon="key" kind="plain" quiet=${apiKey() ? "API key: set" : "API key: none"} onClick=${() => setDialog({ kind: "key" })} />
        <${Theme} />
      </nav>
    </header>
    <main class=${dragging ? "dragging" : ""}>
      <${Form} state=${state} schema=${schema} errors=${errors} notes=${notes} change=${change} adders=${adders} offered=${offered} example=${example}
        sending=${sending} onSubmit=${() => send(state)} onClear=${() => (setState(emptyState()), setNotes({}))} onPaint=${(what) => setDialog({ kind: "painter", what })} />
      <div class="side">
        <section class="stage" ref=${stage} tabindex="-1" aria-label="Result" aria-busy=${running || sending ? "true" : "false"}>
          <p class="visually-hidden" role="status">${sending ? "Sending" : spoken(job)}</p>
          ${
            shownProblem &&
            html`<${ProblemBox} problem=${shownProblem} onField=${focusField} onKey=${() => setDialog({ kind: "key" })}
            onRetry=${problem?.mayPass ? () => send(state) : null} />`
          }
          ${sending && html`<div class="sending"><progress aria-label="Sending"></progress><p>Sending…</p></div>`}
          ${!sending && !view && !shownProblem && !jobId && html`<${Empty} example=${offered.images.length > 0} onExample=${() => example(adders.images)(offered.images.at(-1)[0])} />`}
          ${
            !sending &&
            view &&
            html`<${Job} key=${view.id} job=${job} schema=${schema} canceling=${canceling} onCancel=${cancel} onAgain=${again}
            onInit=${(blob, name) => adders.init([new File([blob], name, { type: blob.type })])}
            onPrompt=${(blob, name) => adders.images([new File([blob], name, { type: blob.type })], false)}
            onSettings=${() => restore(view.input)} />`
          }
        </section>
        <${History} current=${jobId} changed=${`${keyed} ${jobId} ${view?.status}`} onOpen=${open} onKey=${() => setDialog({ kind: "key" })} />
      </div>
    </main>
    ${
      dialog?.kind === "key" &&
      html`<${KeyDialog} message=${dialog.message} onClose=${close}
      onDone=${keyIsSet} />`
    }
    ${
      dialog?.kind === "made-here" &&
      html`<${MadeHereDialog} picture=${dialog.picture} onClose=${close}
      onSettings=${() => (restore(dialog.settings), close())}
      onPicture=${() => (change(({ images }) => ({ images: [...images, asImage(dialog.picture)] })), close())} />`
    }
    ${dialog?.kind === "painter" && html`<${MaskPainter} what=${dialog.what} state=${state} schema=${schema} onSave=${painted} onClose=${close} />`}`;
}

/** The painter for the init image's mask or for where an image prompt acts. */
function MaskPainter({ what, state, schema, onSave, onClose }) {
  const [size, setSize] = useState(null);
  const { init } = state;
  useEffect(() => {
    if (what.kind === "init")
      createImageBitmap(init.file).then(
        ({ width, height }) => setSize([width, height]),
        onClose, // it is said beside the picture, which cannot be shown either
      );
    else
      setSize(
        ["width", "height"].map((name) =>
          Number(state.values[name] ?? schema.field(name, state).fallback),
        ),
      );
  }, []);
  if (!size) return null;
  const [title, hint, picture] =
    what.kind === "init"
      ? ["Paint a mask", "Paint what is to be made anew; the rest keeps its pixels.", init]
      : [
          "Where this image prompt acts",
          "Paint the part of the result that should follow it.",
          state.images[what.index],
        ];
  return html`<${Painter} title=${title} hint=${hint} url=${what.kind === "init" ? init.url : null} full=${size}
    mask=${picture.mask} clears=${what.kind === "init"} onSave=${onSave} onClose=${onClose} />`;
}

/** Until the form is known the page stays as it was sent: its header alone. */
async function start() {
  const page = document.getElementById("page");
  try {
    const [form, models] = await Promise.all([
      getJson(new URL("form.json", assets)),
      getJson("models"),
    ]);
    const known = { schema: new Schema(form, models), examples: form.examples };
    render(html`<${App} ...${known} hasConsole=${form.console} />`, page);
  } catch (problem) {
    render(
      html`<main class="alone"><${ProblemBox} problem=${problem} onRetry=${start} /></main>`,
      page,
    );
    if (!(problem instanceof Problem)) throw problem;
  }
}

start();
