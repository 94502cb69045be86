// The page: fetches each part as JSON, draws it, and draws it again when the server says that it changed.

import { chart, rounded } from "./chart.js";

const $ = (id) => document.getElementById(id);
const STATES = {
  submitted: "waiting to start",
  preparing: "reading images",
  training: "training",
  scoring: "scoring on the validation patients",
  interrupted: "interrupted; it goes on by itself",
  done: "done",
  failed: "failed",
  cancelled: "cancelled",
};
const ENDED = ["done", "failed", "cancelled"];
const seen = {};
let trusted = {};

/** An element. Properties starting with "on" are listeners, the rest attributes; empty children are left out. */
function h(name, properties, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(properties || {})) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value !== undefined && value !== null) node.setAttribute(key, value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false && child !== ""));
  return node;
}

/** Put nodes into a part of the page. What had the focus, and what was unfolded, still has it and still is. */
function draw(id, nodes) {
  const body = $(id), focused = document.activeElement;
  const key = body.contains(focused) ? focused.dataset.key : undefined;
  const open = new Set([...body.querySelectorAll("details[open][data-key]")].map((node) => node.dataset.key));
  body.replaceChildren(...nodes.flat().filter(Boolean));
  body.removeAttribute("aria-busy");
  for (const node of body.querySelectorAll("details[data-key]")) node.open = open.has(node.dataset.key);
  if (key) [...body.querySelectorAll("[data-key]")].find((node) => node.dataset.key === key)?.focus();
}

function tell(text, wrong) {
  $("message").hidden = $("problem").hidden = true;
  const line = $(wrong ? "problem" : "message");
  line.hidden = false;
  line.textContent = text;
}

async function ask(path, body) {
  const options = body === undefined ? {} : {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  };
  const response = await fetch(`api/${path}`, { cache: "no-store", ...options });
  const answer = await response.json().catch(() => ({}));
  if (response.ok) return answer;
  const detail = Array.isArray(answer.detail) ? answer.detail.map((one) => one.msg).join("; ") : answer.detail;
  throw new Error(detail || `the server answered ${response.status}`);
}

/** Do what a button stands for, say how it went, and draw what it changed. */
async function act(path, body, done, parts) {
  try {
    await ask(path, body);
    tell(done);
  } catch (error) {
    tell(sentence(error.message), true);
  }
  await Promise.all(parts.map(refresh));
}

function confirmed(title, text, yes) {
  const dialog = $("confirm");
  $("confirm-title").textContent = title;
  $("confirm-text").textContent = text;
  $("confirm-yes").textContent = yes;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

function duration(seconds) {
  if (seconds === undefined || seconds === null) return "";
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

const when = (text) => h("time", { datetime: text }, new Date(text).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" }));
const sentence = (text) => text ? `${text[0].toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}` : "";
const plural = (count, one, many) => `${count} ${count === 1 ? one : many || `${one}s`}`;
const dice = (value) => value === null || value === undefined ? "–" : value.toFixed(3);

function table(caption, heads, rows, numbers) {
  const cell = (name, text, at) => h(name, { class: numbers.includes(at) ? "number" : null, scope: name === "th" ? "col" : null }, String(text));
  return h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": caption },
    h("table", null,
      h("caption", null, caption),
      h("thead", null, h("tr", null, heads.map((text, at) => cell("th", text, at)))),
      h("tbody", null, rows.map((row) => h("tr", null, row.map((text, at) => cell("td", text, at)))))));
}

function facts(pairs) {
  return h("dl", { class: "facts" }, pairs.map(([name, value]) => h("div", null, h("dt", null, name), h("dd", null, String(value)))));
}

function drawQueue(data) {
  const select = $("strategy"), chosen = select.value || data.strategy;
  select.replaceChildren(...Object.entries(data.strategies).map(([name, text]) => h("option", { value: name, title: text, selected: name === chosen }, name)));
  const scored = data.model
    ? `${data.scored} of ${plural(data.images, "image")} scored by ${data.model}; ${data.unlabelled} without a label.`
    : `${plural(data.unlabelled, "image")} without a label; not scored.`;
  const nodes = [h("p", { class: "quiet" }, `${sentence(data.strategies[data.strategy])} ${scored}`)];
  if (!data.items.length) nodes.push(h("p", null, data.images || data.unlabelled ? "Every image has a label." : "There are no images yet. Add some to the folder of studies, or upload them from 3D Slicer."));
  else nodes.push(h("ol", { class: "queue", role: "list" }, data.items.map(study)));
  if (data.at_work.length) {
    nodes.push(h("h3", null, "At work now"), h("ul", { class: "people" }, data.at_work.map((one) =>
      h("li", { class: one.people.length > 1 ? "bad" : null }, `${one.image}: ${working(one.people)}`))));
  }
  if (data.skipped.length) {
    nodes.push(h("details", { "data-key": "skipped" },
      h("summary", { "data-key": "skipped-summary" }, `${plural(data.skipped.length, "image")} left out`),
      table("Images that cannot be scored", ["Image", "Reason"], data.skipped.map((one) => [one.image, one.reason]), [])));
  }
  draw("queue-body", nodes);
}

function study(item) {
  const where = item.slice;
  const address = where && `api/thumbnail?image=${encodeURIComponent(item.image)}&slice=${where.number}`;
  const picture = where
    ? h("img", { src: address, alt: `Slice ${where.number} of ${item.image}`, width: "96", height: "96", loading: "lazy" })
    : h("div", { class: "blank" });
  return h("li", { class: "study" }, picture, h("div", null,
    h("h3", null, item.image),
    where ? h("p", null, `Slice ${where.number + 1} of ${where.of}, from the feet`) : h("p", { class: "quiet" }, "not scored yet"),
    where && h("p", { class: "small quiet" }, `${where.of - where.number} of ${where.of} in OHIF, S ${where.ras[2].toFixed(1)} mm in Slicer`),
    (item.held || item.people.length > 0) && h("span", { class: "badge" }, working(item.people))));
}

const working = (people) => people.length ? `${people.join(" and ")} ${people.length === 1 ? "works" : "work"} on it` : "somebody works on it";

function drawRuns(data) {
  for (const form of [$("train"), $("pretrain")]) {
    const select = form.elements.segmenter, before = select.value;
    const listed = [...select.options].map((option) => option.value).join();
    if (listed !== data.segmenters.join()) {
      select.replaceChildren(...data.segmenters.map((name) => h("option", { value: name, selected: name === before }, name)));
    }
    form.querySelector("button").disabled = data.busy || !data.segmenters.length;
  }
  const nodes = [];
  if (!data.segmenters.length) nodes.push(h("p", { class: "quiet" }, "There is no segmenter that could be trained."));
  else if (!data.runs.length) nodes.push(h("p", { class: "quiet" }, "Nothing was trained here yet. Save some labels, then press Train."));
  else nodes.push(h("ul", { class: "runs" }, data.runs.map((run, at) => h("li", null, drawRun(run, at === 0)))));
  draw("runs-body", nodes);
}

function outcome(run) {
  if (run.state === "done" && run.kind === "training") return run.published ? ["published", "good"] : ["not published", "bad"];
  if (run.state === "failed") return ["failed", "bad"];
  return [STATES[run.state] || run.state, run.state === "done" ? "good" : "quiet"];
}

function drawRun(run, newest) {
  const ended = ENDED.includes(run.state), [word, tone] = outcome(run);
  const what = run.kind === "pretraining" ? "Pre-training of" : "Training of";
  const parts = [h("div", { class: "title" },
    h("h3", null, `${what} ${run.model}`), h("span", { class: `badge ${tone}` }, word))];
  parts.push(h("p", { class: "small quiet" }, run.started && when(run.started), run.seconds && ended ? ` · took ${duration(run.seconds)}` : ""));
  if (!ended) {
    const [done, total] = run.state === "training" ? [run.step || 0, run.steps] : [run.done, run.total];
    const left = run.eta ? `about ${duration(run.eta)} left` : "";
    const name = `${STATES[run.state] || run.state}${total ? `, ${done} of ${total}` : ""}`;
    parts.push(h("progress", { "aria-label": name, max: total || null, value: total ? done : null }));
    parts.push(h("p", null, [name, left].filter(Boolean).join(" · ")));
    parts.push(h("button", { type: "button", "data-key": "cancel", onclick: cancel }, "Cancel"));
  }
  if (run.message) parts.push(h("p", { class: run.state === "failed" ? "bad" : null }, sentence(run.message)));
  const curves = run.curves || {}, kinds = Object.keys(curves);
  if (kinds.length) {
    const drawn = kinds.map((name) => chart(name === "loss" ? "Loss" : "Dice on validation patients", curves[name], run.steps, name));
    const rows = kinds.flatMap((name) => curves[name].map(([step, value]) => [step, name === "loss" ? "loss" : "Dice", rounded(value)]));
    const figures = h("details", { "data-key": `figures ${run.id}` },
      h("summary", { "data-key": `figures-summary ${run.id}` }, "Figures as a table"),
      table("Figures of this run", ["Step", "What", "Value"], rows, [0, 2]));
    const both = [h("div", { class: "curves" }, drawn), figures];
    parts.push(newest ? both : h("details", { "data-key": `curves ${run.id}` }, h("summary", { "data-key": `curves-summary ${run.id}` }, "Curves"), both));
  }
  return h("article", { class: "run", "aria-label": `${what} ${run.model}, ${word}` }, parts.flat());
}

async function cancel() {
  if (await confirmed("Cancel this run?", "What it learned so far is lost. The model that is served stays as it is.", "Cancel the run")) {
    await act("training/cancel", {}, "The run was cancelled.", ["runs"]);
  }
}

function drawModels(data) {
  const nodes = data.models.map((model) => {
    const live = model.live === null ? "it cannot be read which version is live" : `version ${model.live} is live${model.live ? "" : ", as it came"}`;
    const back = model.live ? h("button", { type: "button", "data-key": `back ${model.name}`, onclick: () => rollback(model) }, "Roll back") : null;
    const versions = model.versions.map((version) => drawVersion(model, version));
    if (versions.length) versions.push(drawVersion(model, { number: 0 }));
    return h("article", { class: "run", "aria-label": model.name },
      h("div", { class: "title wide" }, h("div", null, h("h3", null, model.name), h("p", { class: "quiet" }, live)), back),
      model.problem && h("p", { class: "bad" }, model.problem),
      versions.length ? h("ul", { class: "versions" }, versions) : null);
  });
  if (!data.models.length) nodes.push(h("p", { class: "quiet" }, "No segmenter is served."));
  if (data.encoders.length) {
    nodes.push(h("article", { class: "run", "aria-label": "Encoders" },
      h("h3", null, "Encoders, pre-trained here"), h("ul", null, data.encoders.map((name) => h("li", null, h("code", null, name))))));
  }
  draw("models-body", nodes);
}

function drawVersion(model, version) {
  const live = version.number === model.live;
  const button = live ? h("span", { class: "badge good" }, "live")
    : h("button", { type: "button", "data-key": `publish ${model.name} ${version.number}`, "aria-label": `Publish version ${version.number} of ${model.name}`, onclick: () => publish(model, version) }, "Publish");
  const head = h("div", { class: "title wide" }, h("strong", null, `Version ${version.number}`), button);
  if (version.number === 0) return h("li", { class: `version${live ? " live" : ""}` }, head, h("p", { class: "quiet" }, "as it came"));
  const refused = !version.publish;
  return h("li", { class: `version${live ? " live" : ""}` }, head,
    h("p", null, `Dice ${dice(version.before)} → ${dice(version.after)}`),
    h("p", { class: refused ? "bad" : "quiet" }, refused ? `Held back by the gate: ${version.reason}` : sentence(version.reason)),
    h("p", { class: "small quiet" }, when(version.created),
      ` · from version ${version.parent} · ${plural(version.trained, "label")} to train on, ${version.validated} to score by · took ${duration(version.seconds)}`));
}

async function publish(model, version) {
  const gate = version.reason && !version.publish ? ` The gate held it back: ${version.reason}.` : "";
  if (await confirmed(`Publish version ${version.number} of ${model.name}?`, `Every request from now on is answered by it.${gate}`, "Publish")) {
    await act("models/publish", { model: model.name, version: version.number }, `Version ${version.number} of ${model.name} is live.`, ["models"]);
  }
}

async function rollback(model) {
  if (await confirmed(`Roll back ${model.name}?`, `The version that version ${model.live} came from is served again. Nothing is deleted.`, "Roll back")) {
    await act("models/rollback", { model: model.name }, `${model.name} was rolled back.`, ["models"]);
  }
}

function drawLabels(data) {
  const nodes = [
    h("p", null, `${data.labelled} of ${plural(data.images, "image")} ${data.labelled === 1 ? "has" : "have"} a label; ${plural(data.saved, "save")} in all.`),
    h("progress", { max: data.images || 1, value: data.labelled, "aria-label": `${data.labelled} of ${data.images} labelled` }),
  ];
  if (data.rows.length) {
    nodes.push(table("Labels saved by day and annotator", ["Day", "Annotator", "Saves"], data.rows.map((row) => [row.day, row.annotator || "no name", row.count]), [2]));
  } else nodes.push(h("p", { class: "quiet" }, "Nobody has saved a label yet."));
  draw("labels-body", nodes);
}

function drawCache(data) {
  const counts = data.embeddings, asked = counts.hits + counts.misses + counts.shared + counts.disk_hits;
  const megabytes = (bytes) => `${(bytes / 2 ** 20).toFixed(0)} MiB`;
  draw("cache-body", [
    h("p", { class: "quiet" }, asked ? `${Math.round(100 * (asked - counts.misses) / asked)} % of ${asked} slices were ready when somebody clicked.` : "Nobody has clicked since the start."),
    facts([
      ["slices kept", counts.entries],
      ["memory", `${megabytes(counts.bytes)} of ${megabytes(counts.capacity)}`],
      ["made ahead", counts.prefetched],
      ["made on request", counts.misses],
      ["from the disk", counts.disk_hits],
      ["dropped", counts.evictions],
    ]),
  ]);
}

const PARTS = {
  queue: [() => ask(`queue?strategy=${encodeURIComponent($("strategy").value || "polycl-mixed")}`), drawQueue, "queue-body"],
  runs: [() => ask("runs"), drawRuns, "runs-body"],
  models: [() => ask("models"), drawModels, "models-body"],
  labels: [() => ask("labels"), drawLabels, "labels-body"],
  cache: [() => ask("cache"), drawCache, "cache-body"],
};

async function refresh(name) {
  const [load, show, body] = PARTS[name];
  try {
    const data = await load(), text = JSON.stringify(data);
    if (seen[name] !== text) {
      announce(name, data);
      seen[name] = text;
      show(data);
    }
  } catch (error) {
    delete seen[name];
    draw(body, [h("p", { class: "bad" }, `This part cannot be shown: ${error.message}`)]);
  }
}

/** Say how a run ended to whoever does not look. */
function announce(name, data) {
  if (name !== "runs" || !seen.runs) return;
  const before = JSON.parse(seen.runs).runs[0], now = data.runs[0];
  if (now && ENDED.includes(now.state) && before && before.id === now.id && !ENDED.includes(before.state) && now.state !== "cancelled") {
    tell(now.message || `The run is ${now.state}.`, now.state === "failed");
  }
}

function watch() {
  const source = new EventSource("api/events");
  source.addEventListener("open", () => { $("connection").textContent = "Up to date"; });
  source.addEventListener("error", () => { $("connection").textContent = "Not connected; trying again …"; });
  source.addEventListener("change", (event) => {
    const stamps = JSON.parse(event.data);
    $("connection").textContent = "Up to date";
    for (const name of Object.keys(PARTS)) if (stamps[name] !== trusted[name]) refresh(name);
    trusted = stamps;
  });
}

$("strategy").addEventListener("change", () => refresh("queue"));
$("train").addEventListener("submit", (event) => {
  event.preventDefault();
  const form = event.target.elements;
  act("training/start", { segmenter: form.segmenter.value, steps: Number(form.steps.value), publish: form.publish.value }, "Training has begun.", ["runs"]);
});
$("pretrain").addEventListener("submit", (event) => {
  event.preventDefault();
  const form = event.target.elements;
  act("pretraining/start", { segmenter: form.segmenter.value, steps: Number(form.steps.value) }, "Pre-training has begun.", ["runs"]);
});
watch();
// The first stamps start all parts. A proxy that holds streams back must not leave the page empty.
setTimeout(() => { if (!Object.keys(trusted).length) Object.keys(PARTS).forEach(refresh); }, 2000);
