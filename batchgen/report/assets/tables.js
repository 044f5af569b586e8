// Figures in the header, and the tables: money, slowest rows, failures, caches, configuration.

function head() {
  const { counts } = DATA;
  const missing = counts.rows - counts.ok;
  const states = [["ok", counts.ok, "--ok"], ["failed", counts.failed, "--bad"], ["quarantined", counts.quarantined, "--warn"], ["left", counts.pending, "--idle"]];
  const others = states.slice(1).filter(([, rows]) => rows).map(([name, rows]) => `${count(rows)} ${name}`);
  const useful = DATA.money.shares.find((share) => share.name === "useful_s");
  const work = DATA.timeline.work_s;
  const drawn = counts.ok - counts.aliases;
  const rate = work > 0 ? 3600 * drawn / work : null; // clocks that jump leave none
  const each = DATA.money.hours > 0 ? drawn / DATA.money.hours : null;
  const unit = DATA.money.unit.replace(/s$/, "");
  const cards = [
    card("Rows", count(counts.ok), ` of ${count(counts.rows)} ok`,
      [bar(states.map(([title, size, color]) => ({ title: `${title}: ${size}`, size, color: `var(${color})` }))),
        el("span", { class: counts.failed || counts.quarantined ? "bad" : "" }, others.join(", ") || (missing ? "" : "none failed, none left")),
        counts.aliases ? `; ${count(counts.aliases)} share another row's media` : null]),
    card("Device time", ...hours(), [useful ? `${percent(useful.hours, DATA.money.hours)} of it went into rows of the catalog` : DATA.money.hours > 0 ? "none of it went into rows of the catalog" : "nothing was rendered yet"]),
    card("Throughput", pace(rate), " rows an hour", [`${pace(each)} rows per ${unit}; ${duration(work)} with ranks at work`]),
    card("Against the forecast", against(DATA.money.seconds, DATA.money.predicted), "", [(drawn ? `finished rows took ${rankTime(DATA.money.seconds / 3600)}, ${rankTime(DATA.money.predicted / 3600)} were predicted` : "no row is finished") + (missing ? `; the whole plan: ${rankTime(DATA.money.planned / 3600)}` : "")]),
    drawn ? card("A row", duration(DATA.money.histogram.p50), " of a device", [`95 % at most ${duration(DATA.money.histogram.p95)}`]) : null,
  ];
  if (DATA.money.computed < DATA.money.total) cards.push(card("Evaluations", percent(DATA.money.computed, DATA.money.total), " computed", [`${figure(DATA.money.computed)} of ${figure(DATA.money.total)}; step caches stood in for the rest`]));
  const facts = [DATA.about.tag && `tag ${DATA.about.tag}`, `${DATA.about.model}${DATA.about.weights ? `, weights ${DATA.about.weights.split("/").pop()}` : ""}`,
    [DATA.about.device, DATA.about.layout].filter(Boolean).join(", "), DATA.about.executor && `executor ${DATA.about.executor}`, `planned ${moment(DATA.about.created)}`, `seen ${moment(DATA.about.made)}`].filter(Boolean);
  document.getElementById("top").append(
    el("div", { class: "title" }, el("h1", {}, DATA.about.run), el("span", { class: `state ${DATA.about.state}` }, DATA.about.state + (DATA.about.state === "running" ? `, ${several(DATA.about.alive, "attempt")} at work` : "")), themes()),
    el("div", { class: "facts" }, facts.map((fact) => el("span", {}, fact))), el("dl", { class: "cards" }, cards));
}

// [figure, unit] of the whole run.
function hours() {
  const [value, ...unit] = rankTime(DATA.money.hours).split(" ");
  return [value, ` ${unit.join(" ")}` + (DATA.money.hours < 0.1 ? ` of ${DATA.money.unit.split("-")[0]}s` : "")];
}

function card(name, value, after, notes) {
  return el("div", { class: "card" }, el("dt", {}, name), el("dd", {}, el("div", { class: "big" }, value, el("small", {}, after)), el("div", { class: "note" }, notes)));
}

function themes() {
  const names = ["auto", "light", "dark"];
  const button = el("button", { class: "end", type: "button", on: { click: () => {
    const next = names[(names.indexOf(document.documentElement.dataset.theme || "auto") + 1) % names.length];
    document.documentElement.dataset.theme = next;
    button.textContent = `Theme: ${next}`;
    redraw();
  } } }, "Theme: auto");
  for (const asked of ["(prefers-color-scheme: dark)", "print"]) matchMedia(asked).addEventListener("change", redraw);
  return button;
}

// ----------------------------------------------------------------------------------- money
const TINTS = { useful_s: "--ok", load_s: "--hue-4", compile_s: "--hue-4", warmup_s: "--hue-4", other_s: "--hue-4", move_s: "--hue-2", shared_decode_s: "--hue-2", retried_s: "--hue-3", saved_s: "--hue-1", lost_s: "--bad", idle_s: "--idle", tail_s: "--tail" };
const tint = (name) => `var(${TINTS[name] || "--idle"})`;

function money() {
  if (!(DATA.money.hours > 0) && !DATA.money.buckets.length) return null;
  const parts = DATA.money.shares.map((share) => ({ title: share.meaning, size: share.hours, color: tint(share.name) }));
  const lines = table(null, [
    { name: "part", kind: "tight", of: (s) => [el("span", { class: "swatch", style: { background: tint(s.name) } }), s.name.replace("_s", "")] },
    { name: "time of ranks", kind: "n", of: (s) => rankTime(s.hours) },
    { name: "share", kind: "n", of: (s) => percent(s.hours, DATA.money.hours, 1) },
    { name: "", kind: "words muted", of: (s) => s.meaning },
  ], DATA.money.shares);
  return section("money", "Where the time went", "Decoding and writing run beside the forwards: they are in the device time of rows, but no part of the time of ranks unless these wait.", el("div", { class: "split" },
    el("div", {}, el("h3", {}, `All ${rankTime(DATA.money.hours)} of ranks`), bar(parts, true), lines),
    el("div", {}, DATA.money.buckets.length ? costs("Device time of rows by bucket", "bucket", DATA.money.buckets) : null, DATA.money.hosts.length > 1 ? costs("By host", "host", DATA.money.hosts) : null)));
}

const STAGES = [["encode", "--hue-4"], ["denoise", "--hue-1"], ["decode", "--hue-2"]];

function costs(caption, name, lines) {
  const legend = el("p", { class: "muted legend", style: { "font-size": "12px", "margin": "6px 0 14px" } }, STAGES.flatMap(([stage, color]) => [el("span", { class: "swatch", style: { background: `var(${color})` } }), stage]));
  return table(caption, [
    { name, kind: "tight mono", of: (line) => line.name || "–" },
    { name: "rows", kind: "n", of: (line) => count(line.rows) },
    { name: "a row", kind: "n", of: (line) => duration(line.seconds / line.rows) },
    { name: "together", kind: "n", of: (line) => rankTime(line.seconds / 3600) },
    { name: "share", kind: "n", of: (line) => percent(line.seconds, DATA.money.seconds) },
    { name: "predicted", kind: "n", of: (line) => against(line.seconds, line.predicted) },
    { name: "stages", kind: "", of: (line) => bar(STAGES.map(([stage, color]) => ({ title: `${stage}: ${percent(line[stage], line.encode + line.denoise + line.decode)}`, size: line[stage], color: `var(${color})` }))) },
  ], lines, legend);
}

// ------------------------------------------------------------------------------------ rows
function link(row, rows, open) {
  return el("button", { class: "link", type: "button", on: { click: () => open(row, rows) } }, row.id);
}

function slowest(open) {
  const rows = ROWS.filter((row) => row.seconds !== null && !row.alias_of).sort((a, b) => b.seconds - a.seconds).slice(0, 15);
  if (!rows.length) return null;
  return section("slowest", "Slowest rows", null, table(null, [
    { name: "row", kind: "id", of: (row) => link(row, rows, open) },
    { name: "device time", kind: "n", of: (row) => duration(row.seconds) },
    { name: "predicted", kind: "n", of: (row) => against(row.seconds, row.predicted) },
    { name: "bucket", kind: "tight mono", of: (row) => row.bucket },
    { name: "steps", kind: "n", of: (row) => count(row.steps) },
    { name: "evaluations", kind: "n", of: (row) => (row.computed < row.total ? `${figure(row.computed)} of ${row.total}` : count(row.total)) },
    { name: "drawn by", kind: "tight mono", of: (row) => `${row.attempt} ${row.host}` },
    { name: "prompt", kind: "", of: (row) => (row.prompt.length > 140 ? row.prompt.slice(0, 140) + " …" : row.prompt) },
  ], rows));
}

function failures(open) {
  const { counts } = DATA;
  if (!DATA.failures.length) return null;
  const by = new Map(ROWS.map((row) => [row.id, row]));
  const name = (id, others) => (by.has(id) ? link(by.get(id), others.filter((each) => by.has(each)).map((each) => by.get(each)), open) : el("span", { class: "mono" }, id));
  const groups = DATA.failures.map((group) => el("div", { class: "failure" },
    el("h3", {}, `${group.kind || "no class"} — ${several(group.rows, "row")}`),
    el("div", { class: "message" }, group.message),
    el("p", { class: "muted" }, "on ", several(group.hosts, "host"), group.quarantined ? `, ${count(group.quarantined)} quarantined` : "", ": ",
      group.first.flatMap((id, at) => [at ? ", " : "", name(id, group.first)]), group.rows > group.first.length ? " …" : ""),
    group.traceback ? el("details", {}, el("summary", {}, "Traceback of the first"), el("pre", { tabindex: "0" }, group.traceback)) : null));
  const told = ["failed", "quarantined"].filter((status) => counts[status]).map((status) => `${count(counts[status])} ${status}`);
  const lead = `Rows by error, ${told.join(" and ")}; figures and quoted words in a message may differ inside a group.`
    + (DATA.failure_kinds > DATA.failures.length ? ` The ${DATA.failures.length} largest of ${count(DATA.failure_kinds)} groups.` : "");
  return section("failures", "Failures", lead, groups);
}

// ---------------------------------------------------------------------- memory, caches, configuration
function shortages(open) {
  if (!DATA.shortages.length) return null;
  const by = new Map(ROWS.map((row) => [row.id, row]));
  const name = (id) => (by.has(id) ? link(by.get(id), [by.get(id)], open) : el("span", { class: "mono" }, id));
  return section("memory", "Short of memory", "Rows that were drawn after their device had been out of memory, by what was done about it last.", table(null, [
    { name: "device", kind: "tight", of: (line) => line.device || "–" },
    { name: "rung", kind: "tight mono", of: (line) => line.rung },
    { name: "rows", kind: "n", of: (line) => count(line.rows) },
    { name: "share", kind: "n", of: (line) => percent(line.rows, DATA.counts.rows) },
    { name: "attempts", kind: "n", of: (line) => count(line.attempts) },
    { name: "", kind: "words muted", of: (line) => line.meaning },
    { name: "rows, the first", kind: "", of: (line) => el("span", {}, line.first.flatMap((id, at) => [at ? ", " : "", name(id)]), line.rows > line.first.length ? " …" : "") },
  ], DATA.shortages));
}

function caches(open) {
  if (!(DATA.money.computed < DATA.money.total) && !DATA.money.fidelity.length) return null;
  const by = new Map(ROWS.map((row) => [row.id, row]));
  const spread = (metric, unit) => [
    { name: `${metric.toUpperCase()} mean`, kind: "n", of: (part) => figure(part[metric].mean) + unit },
    { name: "5 %", kind: "n", of: (part) => figure(part[metric].p5) + unit },
    { name: "worst", kind: "n", of: (part) => figure(part[metric].worst) + unit },
  ];
  const worst = { name: "worst row", kind: "", of: ({ psnr: { worst_row: id } }) => (by.has(id) ? link(by.get(id), [by.get(id)], open) : el("span", { class: "mono" }, id)) };
  return section("caches", "Step caches", "Evaluations of the transformer that were computed, and how far audited rows are from themselves without a cache.", el("div", { class: "split" },
    table("Evaluations", [
      { name: "strategy", kind: "tight", of: (line) => (line.strategy === "none" ? "none" : `${line.strategy} ${figure(line.ratio)}`) },
      { name: "rows", kind: "n", of: (line) => count(line.rows) },
      { name: "computed", kind: "n", of: (line) => figure(line.computed) },
      { name: "of", kind: "n", of: (line) => figure(line.total) },
      { name: "share", kind: "n", of: (line) => percent(line.computed, line.total, 1) },
      { name: "", kind: "", of: (line) => bar([{ title: "computed", size: line.computed, color: "var(--hue-1)" }, { title: "left out", size: line.total - line.computed, color: "var(--idle)" }]) },
    ], DATA.money.caches),
    DATA.money.fidelity.length ? table("Audited rows", [
      { name: "strategy", kind: "tight", of: (part) => part.strategy }, { name: "bucket", kind: "tight mono", of: (part) => part.bucket },
      { name: "rows", kind: "n", of: (part) => count(part.rows) }, ...spread("psnr", " dB"), ...spread("ssim", ""), worst,
    ], DATA.money.fidelity) : el("p", { class: "muted" }, "No row was audited (system.cache.audit_every).")));
}

function configuration() {
  return section("configuration", "Configuration", "As composed for the run.",
    DATA.about.overrides.length ? el("p", {}, "Overrides: ", el("span", { class: "mono" }, DATA.about.overrides.join("  "))) : null,
    el("p", { class: "muted" }, "Manifest: ", el("span", { class: "mono" }, DATA.about.manifest)),
    el("details", {}, el("summary", {}, "All keys"), el("pre", { tabindex: "0" }, DATA.about.config)),
    el("details", {}, el("summary", {}, "Versions"), el("pre", { tabindex: "0" }, DATA.about.versions.join("\n"))));
}
