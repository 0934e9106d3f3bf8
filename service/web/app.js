// The playground: send an image, follow its job, compare before and after, lay the maps over the result.
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

let file = null;
let job = null;
let events = null;
let beforeUrl = null;
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
  if (!chosen) return;
  file = chosen;
  $("file-name").textContent = file.name;
  $("file-facts").textContent = `${(file.size / 1024).toFixed(0)} kB`;
  $("send").disabled = false;
  say("");
}

function form() {
  const data = new FormData();
  data.append("file", file, file.name);
  const fields = { profile: "profile", scale: "scale", preset: "preset", num_steps: "num-steps", seed: "seed",
    output_format: "output-format", prompt: "prompt" };
  for (const [name, id] of Object.entries(fields)) if ($(id).value) data.append(name, $(id).value);
  const strengths = [...$("modalities").querySelectorAll("input:checked")].map((box) => box.value);
  data.append("modalities", strengths.join(",") || "none");
  return data;
}

async function send(event) {
  event.preventDefault();
  if (!file) return;
  say("");
  $("result").hidden = true;
  setBusy(true);
  forgetFiles();
  if (beforeUrl) URL.revokeObjectURL(beforeUrl);
  beforeUrl = URL.createObjectURL(file);
  try {
    show(await ask("/v1/upscale", { method: "POST", body: form() }));
    follow();
  } catch (error) {
    say(error.message);
    setBusy(false);
  }
}

function setBusy(isBusy) {
  $("send").disabled = isBusy || !file;
  $("cancel").hidden = !isBusy;
  $("cancel").disabled = false;
  $("run").hidden = !isBusy;
  if (isBusy) $("bar").removeAttribute("value");
  $("stage").textContent = isBusy ? "sending" : "";
}

async function follow() {
  events?.abort();
  if (FINAL.includes(job.status)) return;
  const listening = events = new AbortController();
  try {
    const answer = await request(`${job.url}/events`, { signal: listening.signal });
    for await (const state of readEvents(answer.body)) show(state);
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

async function poll() {
  try {
    show(await ask(job.url));
    if (!FINAL.includes(job.status)) follow();
  } catch (error) {
    say(error.message);
    setBusy(false);
  }
}

function show(state) {
  job = state;
  if (!FINAL.includes(job.status)) {
    $("cancel").disabled = job.cancel_requested;
    return showProgress();
  }
  setBusy(false);
  if (job.status === "succeeded") showResult().catch((error) => say(error.message));
  else if (job.status === "failed") say(`${job.error?.title ?? "Failed"}. ${job.error?.detail ?? ""}`);
  else say(`The job is ${job.status}.`);
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

async function showResult() {
  const { result, maps } = job;
  const url = await fetched(result.url);
  $("after").src = url;
  $("after").width = result.width;
  $("before").hidden = false;
  $("before").src = beforeUrl;
  $("overlay").hidden = true;
  $("download").href = url;
  $("download").download = `${(file?.name ?? "image").replace(/\.[^.]*$/, "")}_m3esr.${result.content_type.slice(6)}`;
  const buttons = ["none", ...Object.keys(maps)].map((name) =>
    element("button", { type: "button", textContent: name, onclick: () => overlay(name) }));
  $("map-buttons").replaceChildren(...buttons);
  overlay("none");
  showMeans(maps);
  showFacts();
  $("result").hidden = false;
}

async function overlay(name) {
  overlaid = name;
  for (const button of $("map-buttons").children) {
    button.setAttribute("aria-pressed", String(button.textContent === name));
  }
  $("overlay").hidden = name === "none";
  if (name !== "none") {
    try {
      const url = await fetched(job.maps[name].url);
      if (overlaid !== name) return; // another was chosen meanwhile
      $("overlay").src = url;
      $("overlay").alt = `${name} map`;
    } catch (error) {
      say(error.message);
    }
  }
}

function showMeans(maps) {
  const rows = Object.entries(maps).map(([name, map]) => {
    const mean = element("td", { className: "number", textContent: map.mean.toFixed(3) });
    // Uncertainty is not a share: it has no end of its scale to draw a bar against.
    const bar = name.startsWith("uncertainty") ? "" : element("meter", { min: 0, max: 1, value: map.mean });
    return element("tr", {}, element("th", { textContent: name }), element("td", {}, bar), mean);
  });
  $("means").tBodies[0].replaceChildren(...rows);
  $("means").hidden = rows.length === 0;
}

function showFacts() {
  const seconds = Object.values(job.timings).reduce((sum, value) => sum + value, 0);
  const psnr = job.trust?.lr_consistency_psnr;
  const facts = {
    Size: `${job.input.width}×${job.input.height} → ${job.result.width}×${job.result.height}`,
    Time: `${seconds.toFixed(2)} s`,
    "Agrees with the input": psnr == null ? null : `${psnr.toFixed(1)} dB when shrunk back`,
    Caption: job.caption,
    Fusion: job.fusion,
    Seed: job.seed,
    Model: job.model && `${job.model.profile} ${job.model.sha256.slice(0, 12)}`,
    Job: job.id,
  };
  $("facts").replaceChildren(...Object.entries(facts)
    .filter(([, value]) => value != null && value !== "")
    .flatMap(([name, value]) => [element("dt", { textContent: name }), element("dd", { textContent: value })]));
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
$("file").addEventListener("change", () => choose($("file").files[0]));
$("cancel").addEventListener("click", () => {
  $("cancel").disabled = true;
  if (job) ask(job.url, { method: "DELETE" }).catch((error) => say(error.message));
});
$("split").addEventListener("input", () => $("stage-view").style.setProperty("--split", `${$("split").value}%`));
$("opacity").addEventListener("input", () => ($("overlay").style.opacity = $("opacity").value / 100));
$("overlay").style.opacity = 0.65;
$("before").addEventListener("error", () => ($("before").hidden = true)); // TIFF: no browser draws it
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", name === "dragover");
    if (name === "drop") choose(event.dataTransfer.files[0]);
  });
}
document.addEventListener("paste", (event) => choose(event.clipboardData.files[0]));
start();
