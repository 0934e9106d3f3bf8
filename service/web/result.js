// What the playground shows of a job that succeeded: before and after, the maps over it, and its facts.
"use strict";

async function showResult() {
  const { id, result, maps } = job;
  const { file, beforeUrl } = sent.find((entry) => entry.job.id === id);
  const url = await fetched(result.url);
  if (job.id !== id) return; // another was chosen meanwhile
  $("after").src = url;
  $("after").width = result.width;
  $("before").hidden = false;
  $("before").src = beforeUrl;
  $("overlay").hidden = true;
  $("download").href = url;
  $("download").download = `${file.name.replace(/\.[^.]*$/, "")}_m3esr.${result.content_type.slice(6)}`;
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
