// The playground: send one image or several, follow their jobs, compare before and after, lay the maps over a result.
"use strict";

const MODALITIES = ["segmentation", "depth", "edge", "dino", "text"];
const FINAL = ["succeeded", "failed", "canceled", "expired"];
const $ = (id) => document.getElementById(id);

// Everything that is shown goes through here as text: names, prompts and captions are never markup.
function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

let files = [];
let sent = []; // one entry for each file that was sent: { file, job, beforeUrl }
let batch = null; // of several files
let job = null; // the one that is shown, of `sent`
let events = null;
let previewed = null; // what the preview on the page shows: of which job, and how much of it
let apiKey = sessionStorage.getItem("m3esr-api-key") ?? ""; // of this tab, until it is closed
let overlaid = "none";
const blobUrls = new Map();

function say(text) {
  $("message").textContent = text;
  $("message").hidden = !text;
}

// Every request goes through here: neither an <img> nor an EventSource could send a key.
async function request(url, options = {}) {
  let answer;
  const headers = apiKey ? { Authorization: `Bearer ${apiKey}` } : {};
  try {
    answer = await fetch(url, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The service cannot be reached.");
  }
  if (answer.status === 401) $("key").hidden = false;
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => ({}));
  throw new Error(`${body.title ?? answer.statusText}. ${body.detail ?? ""}`);
}

async function ask(url, options) {
  const answer = await request(url, options);
  return answer.status === 204 ? null : answer.json();
}

// An address of this page for a file of the service, fetched once.
async function fetched(url) {
  if (!blobUrls.has(url)) blobUrls.set(url, URL.createObjectURL(await (await request(url)).blob()));
  return blobUrls.get(url);
}

function forgetFiles() {
  for (const url of blobUrls.values()) URL.revokeObjectURL(url);
  blobUrls.clear();
}

function choose(chosen) {
  if (!chosen.length) return;
  files = [...chosen];
  const bytes = files.reduce((sum, file) => sum + file.size, 0);
  $("file-name").textContent = files.length === 1 ? files[0].name : `${files.length} images`;
  $("file-facts").textContent = `${(bytes / 1024).toFixed(0)} kB`;
  $("send").disabled = false;
  say("");
}

function form() {
  const data = new FormData();
  for (const file of files) data.append("file", file, file.name);
  const fields = { profile: "profile", scale: "scale", preset: "preset", num_steps: "num-steps", seed: "seed",
    output_format: "output-format", priority: "priority", prompt: "prompt", webhook_url: "webhook-url" };
  for (const [name, id] of Object.entries(fields)) if ($(id).value) data.append(name, $(id).value);
  const strengths = [...$("modalities").querySelectorAll("input:checked")].map((box) => box.value);
  data.append("modalities", strengths.join(",") || "none");
  return data;
}

async function send(event) {
  event.preventDefault();
  if (!files.length) return;
  say("");
  events?.abort();
  $("result").hidden = $("batch").hidden = true;
  setBusy(true);
  forgetFiles();
  for (const entry of sent) URL.revokeObjectURL(entry.beforeUrl);
  sent = files.map((file) => ({ file, job: null, beforeUrl: URL.createObjectURL(file) }));
  batch = job = null;
  try {
    const body = form();
    if (files.length === 1) note(await ask("/v1/upscale", { method: "POST", body }));
    else noteBatch(await ask("/v1/batches", { method: "POST", body }));
    follow();
  } catch (error) {
    say(error.message);
    setBusy(false);
  }
}

// What the server told of a job, of those that were sent the one it is; the first is shown until another is chosen.
function note(told) {
  const entry = sent.find((each) => each.job?.id === told.id) ?? sent.find((each) => !each.job);
  if (!entry) return;
  entry.job = told;
  if (!job || job.id === told.id) show(told);
}

function noteBatch(told) {
  batch = told;
  told.jobs.forEach(note);
  $("batch").replaceChildren(...sent.filter((entry) => entry.job).map(({ file, job: each }) =>
    element("button", { type: "button", textContent: `${file.name} · ${each.status}`, onclick: () => open(each.id) },
    )));
  for (const [index, button] of [...$("batch").children].entries()) {
    button.setAttribute("aria-pressed", String(sent[index].job.id === job.id));
  }
  $("batch").hidden = false;
}

function open(id) {
  $("result").hidden = true;
  say("");
  show(sent.find((entry) => entry.job.id === id).job);
  noteBatch(batch);
}

function setBusy(isBusy) {
  $("send").disabled = isBusy || !files.length;
  $("cancel").hidden = !isBusy && !(batch && !batch.is_finished);
  $("cancel").disabled = false;
  $("replay").hidden = true;
  $("preview").hidden = true;
  $("run").hidden = !isBusy;
  if (isBusy) $("bar").removeAttribute("value");
  $("stage").textContent = isBusy ? "sending" : "";
}

async function follow() {
  events?.abort();
  if (batch) return void setTimeout(pollBatch, 1000, batch.id);
  if (FINAL.includes(job.status)) return;
  const listening = events = new AbortController();
  try {
    const answer = await request(`${job.url}/events`, { signal: listening.signal });
    for await (const state of readEvents(answer.body)) note(state);
  } catch {
    // Whatever it was, the poll below finds it out.
  }
  if (!listening.signal.aborted && !FINAL.includes(job.status)) setTimeout(poll, 1000);
}

// The data of server-sent events as they come; each is the whole job.
async function* readEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (text + value).split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").find((line) => line.startsWith("data: "));
      if (data) yield JSON.parse(data.slice(6));
    }
  }
}

async function pollBatch(id) {
  if (batch?.id !== id) return; // another was sent meanwhile
  try {
    noteBatch(await ask(batch.url));
    if (!batch.is_finished) setTimeout(pollBatch, 1000, id);
  } catch (error) {
    say(error.message);
    setBusy(false);
  }
}

async function poll() {
  try {
    note(await ask(job.url));
    if (!FINAL.includes(job.status)) follow();
  } catch (error) {
    say(error.message);
    setBusy(false);
  }
}

function show(state) {
  const isKnown = job?.id === state.id && job.status === state.status && FINAL.includes(state.status);
  job = state;
  if (isKnown && !$("result").hidden) return;
  if (!FINAL.includes(job.status)) {
    if ($("run").hidden) setBusy(true);
    $("cancel").disabled = job.cancel_requested;
    showPreview();
    return showProgress();
  }
  setBusy(false);
  $("replay").hidden = !["failed", "canceled"].includes(job.status);
  if (job.status === "succeeded") showResult().catch((error) => say(error.message));
  else if (job.status === "failed") say(`${job.error?.title ?? "Failed"}. ${job.error?.detail ?? ""}`);
  else say(`The job is ${job.status}.`);
}

// The coarse image grows region by region; it is fetched again when it shows more.
async function showPreview() {
  if (!job.preview) return void ($("preview").hidden = true);
  const shown = `${job.id} ${job.attempts} ${job.preview.fraction}`;
  if (shown === previewed) return void ($("preview").hidden = false);
  previewed = shown;
  try {
    const url = URL.createObjectURL(await (await request(job.preview.url)).blob());
    URL.revokeObjectURL($("preview").src);
    $("preview").src = url;
    $("preview").hidden = FINAL.includes(job.status);
  } catch {
    previewed = null; // it is only a preview: the next state brings another
  }
}

async function replay() {
  try {
    say("");
    setBusy(true);
    note(await ask(`${job.url}/replay`, { method: "POST" }));
    if (batch) noteBatch(await ask(batch.url));
    follow();
  } catch (error) {
    setBusy(false);
    say(error.message);
  }
}

function showProgress() {
  const { progress, queue, status } = job;
  if (progress) {
    $("bar").value = progress.fraction;
    const step = progress.num_steps ? ` ${progress.step} of ${progress.num_steps}` : "";
    $("stage").textContent = `${progress.stage}${step} · ${(100 * progress.fraction).toFixed(0)} %`;
  } else {
    const eta = queue?.eta_seconds == null ? "" : `, about ${Math.ceil(queue.eta_seconds)} s`;
    const place = queue?.position ? `${queue.position} before yours` : "next in line";
    $("stage").textContent = queue ? place + eta : status;
  }
}

async function look() {
  say("");
  try {
    const { profiles } = await ask("/v1/profiles");
    const served = profiles.filter((profile) => profile.is_served);
    $("profile").replaceChildren(...served.map((profile) =>
      element("option", { value: profile.name, textContent: profile.title, selected: profile.is_default })));
    const isReady = served.some((profile) => profile.num_ready_workers > 0);
    $("readiness").textContent = isReady ? "ready" : "no worker is ready";
    $("readiness").className = `badge ${isReady ? "good" : "bad"}`;
  } catch (error) {
    $("readiness").textContent = "not available";
    $("readiness").className = "badge bad";
    say(error.message);
  }
}

function start() {
  for (const name of MODALITIES) {
    const box = element("input", { type: "checkbox", value: name, checked: true });
    $("modalities").append(element("label", {}, box, ` ${name}`));
  }
  $("api-key").value = apiKey;
  $("key").hidden = !apiKey;
  look();
}

$("form").addEventListener("submit", send);
$("api-key").addEventListener("change", () => {
  apiKey = $("api-key").value.trim();
  sessionStorage.setItem("m3esr-api-key", apiKey);
  look();
});
$("file").addEventListener("change", () => choose($("file").files));
$("cancel").addEventListener("click", () => {
  $("cancel").disabled = true;
  if (job) ask((batch ?? job).url, { method: "DELETE" }).catch((error) => say(error.message));
});
$("replay").addEventListener("click", replay);
$("split").addEventListener("input", () => $("stage-view").style.setProperty("--split", `${$("split").value}%`));
$("opacity").addEventListener("input", () => ($("overlay").style.opacity = $("opacity").value / 100));
$("overlay").style.opacity = 0.65;
$("before").addEventListener("error", () => ($("before").hidden = true)); // TIFF: no browser draws it
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", name === "dragover");
    if (name === "drop") choose(event.dataTransfer.files);
  });
}
document.addEventListener("paste", (event) => choose(event.clipboardData.files));
start();
