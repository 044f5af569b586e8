// The contact sheet: which rows are shown, in what order, and their media, loaded when in sight.

const ROWS = DATA.sheet.id.map((id, at) => {
  const row = { at };
  for (const [name, values] of Object.entries(DATA.sheet)) if (Array.isArray(values)) row[name] = values[at];
  row.search = `${row.id}\n${row.prompt}`.toLowerCase();
  row.labels = [...new Set(row.tags.split(",").map((tag) => tag.trim()))].filter((tag) => tag && tag !== "…");
  return row;
});
const TILES_AT_ONCE = 84;
const MOVING = /\.(mp4|webm)$/i;
const STILL = /\.(png|jpe?g|webp|gif)$/i;
const FRAMES = /\.frames$/i;

// Relative to this page, whatever the path says.
const address = (path) => "./" + path.split("/").map(encodeURIComponent).join("/");

function media(row, playing) {
  const made = shape(row, playing);
  made?.addEventListener("error", () => made.src && made.replaceWith(el("span", { class: "none" }, "file is not there or cannot be shown")));
  return made;
}

function shape(row, playing) {
  if (MOVING.test(row.media)) {
    const video = el("video", { muted: true, loop: true, playsinline: true, preload: "metadata", controls: playing, "aria-label": "clip" });
    video.muted = true;
    return video;
  }
  if (STILL.test(row.media) || FRAMES.test(row.media)) return el("img", { alt: playing ? row.prompt : "", loading: playing ? null : "lazy" });
  return null;
}

function source(row) {
  return address(FRAMES.test(row.media) ? `${row.media}/00000.png` : row.media);
}

function placeholder(row) {
  const words = { pending: "not rendered yet", ok: row.media ? row.media.split(".").pop() : "no media" };
  return el("span", { class: "none" }, row.error || words[row.status] || row.status);
}

// ------------------------------------------------------------------ which rows, in what order
const ORDERS = [
  ["manifest order", null],
  ["cost, highest first", (row) => row.seconds, -1],
  ["cost, lowest first", (row) => row.seconds, 1],
  ["over prediction, most first", (row) => (row.seconds === null ? null : row.seconds / row.predicted), -1],
  ["score, lowest first", (row) => row.score, 1, "score"],
  ["score, highest first", (row) => row.score, -1, "score"],
  ["PSNR, lowest first", (row) => row.psnr, 1, "psnr"],
].filter(([, , , needs]) => !needs || ROWS.some((row) => row[needs] !== null));

function chosen(wish) {
  const words = wish.text.toLowerCase().split(/\s+/).filter(Boolean);
  const within = (value, low, high) => (low === null && high === null)
    || (value !== null && (low === null || value >= low) && (high === null || value <= high));
  const rows = ROWS.filter((row) => (!wish.status || row.status === wish.status)
    && (!wish.bucket || row.bucket === wish.bucket)
    && (!wish.tag || row.labels.includes(wish.tag))
    && within(row.score, wish.low, wish.high)
    && words.every((word) => row.search.includes(word)));
  const [, key, sign] = ORDERS[wish.order];
  if (!key) return rows;
  const last = (value) => (value === null || !Number.isFinite(value) ? -Infinity : sign * -value);
  return rows.sort((a, b) => last(key(b)) - last(key(a)) || a.at - b.at);
}

// ------------------------------------------------------------------------------------- tiles
class Tiles {
  constructor(open) {
    this.open = open;
    // One shape for all, the most frequent: rows of tiles stay in line.
    const [ratio] = counted(ROWS.map((row) => `${row.width} / ${row.height}`))[0] || ["1"];
    this.grid = el("div", { class: "tiles", role: "list", style: { "--ratio": ratio } });
    this.more = el("button", { class: "more", type: "button", on: { click: () => this.grow() } }, "Show more");
    this.playing = false;
    this.rows = [];
    this.near = new IntersectionObserver((seen) => seen.forEach((each) => this.sight(each)), { rootMargin: "300px" });
  }

  show(rows) {
    this.near.disconnect();
    this.rows = rows;
    this.shown = 0;
    this.grid.replaceChildren();
    this.grow();
  }

  grow() {
    const next = this.rows.slice(this.shown, this.shown + TILES_AT_ONCE);
    this.shown += next.length;
    for (const row of next) {
      const tile = this.tile(row);
      this.grid.append(el("div", { role: "listitem" }, tile));
      this.near.observe(tile);
    }
    const left = this.rows.length - this.shown;
    this.more.hidden = left <= 0;
    this.more.textContent = `Show ${count(Math.min(left, TILES_AT_ONCE))} more of ${count(left)}`;
  }

  tile(row) {
    const small = Math.max(row.width, row.height) <= 128;
    const inside = row.status === "ok" ? media(row, false) : null;
    const costs = [duration(row.seconds), row.score === null ? null : `score ${figure(row.score, 2)}`,
      row.psnr === null ? null : `${figure(row.psnr)} dB`].filter((word) => word && word !== "–");
    const tile = el("button", {
      class: `tile ${row.status}${small ? " small" : ""}`, type: "button", "data-row": row.at,
      "aria-label": `${row.id}, ${row.status}: ${row.prompt}`,
      on: { click: () => this.open(row, this.rows) },
    },
    el("div", { class: "frame" }, inside || placeholder(row)),
    el("div", { class: "says" }, row.prompt),
    el("div", { class: "meta" }, el("span", { class: "rid mono", title: row.id }, row.id), el("span", { class: "num" }, costs.join(" · "))));
    if (inside && inside.tagName === "IMG") inside.src = source(row);
    if (inside && inside.tagName === "VIDEO") {
      inside.addEventListener("loadedmetadata", () => this.playing || halfway(inside));
      for (const event of ["mouseenter", "focus"]) tile.addEventListener(event, () => fromTheStart(inside));
      for (const event of ["mouseleave", "blur"]) tile.addEventListener(event, () => this.playing || inside.pause());
    }
    return tile;
  }

  // Clips are fetched when their tile comes near, and let go of their decoder when it leaves. The
  // browser itself does so with images, and has them all on paper.
  sight(entry) {
    const video = entry.target.querySelector("video");
    if (!video) return;
    if (entry.isIntersecting) {
      if (!video.hasAttribute("src")) video.src = source(ROWS[entry.target.dataset.row]);
      if (this.playing) play(video);
    } else if (video.hasAttribute("src")) {
      video.pause();
      video.removeAttribute("src");
      video.load();
    }
  }

  playAll(on) {
    this.playing = on;
    for (const video of this.grid.querySelectorAll("video[src]")) on ? fromTheStart(video) : video.pause();
  }
}

// At rest a clip shows its middle: many begin in the dark.
function halfway(video) {
  if (video.paused) video.currentTime = video.duration / 2;
}

function fromTheStart(video) {
  if (!video.paused) return;
  video.currentTime = 0;
  play(video);
}

// A clip that is taken away before it starts is no error.
const play = (video) => video.play().catch(() => {});

// ---------------------------------------------------------------------------------- controls
function choice(label, options, act) {
  const select = el("select", { on: { change: (event) => act(event.target.value) } },
    options.map(([value, words]) => el("option", { value }, words)));
  return el("label", {}, label, select);
}

function counted(values) {
  const found = new Map();
  for (const value of values) found.set(value, (found.get(value) || 0) + 1);
  return [...found].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1));
}

function contactSheet(open) {
  const wish = { text: "", status: "", bucket: "", tag: "", low: null, high: null, order: 0 };
  const tiles = new Tiles(open);
  const found = el("p", { class: "found", role: "status" });
  const renew = () => {
    const rows = chosen(wish);
    tiles.show(rows);
    found.textContent = `${count(rows.length)} of ${several(ROWS.length, "row")} on this sheet`;
  };
  const set = (name) => (value) => { wish[name] = value; renew(); };
  const number = (name) => el("input", { type: "number", step: "any", "aria-label": `score ${name === "low" ? "from" : "to"}`,
    on: { input: (event) => set(name)(event.target.value === "" ? null : Number(event.target.value)) } });
  const all = (values) => [["", "all"], ...values.map(([value, rows]) => [value, `${value} (${count(rows)})`])];
  const statuses = counted(ROWS.map((row) => row.status));
  const buckets = counted(ROWS.map((row) => row.bucket));
  const tags = counted(ROWS.flatMap((row) => row.labels)).slice(0, 200);
  const scored = ROWS.some((row) => row.score !== null);
  let waiting = 0;
  const search = el("input", { type: "search", placeholder: "words of a prompt, or a row id", on: { input: (event) => {
    clearTimeout(waiting);
    waiting = setTimeout(() => set("text")(event.target.value), 120);
  } } });
  const playing = el("button", { type: "button", "aria-pressed": "false", on: { click: () => {
    tiles.playAll(!tiles.playing);
    playing.setAttribute("aria-pressed", String(tiles.playing));
  } } }, "Play all in view");
  const controls = el("div", { class: "controls", role: "search" },
    el("label", { class: "wide" }, "Search", search),
    choice("Status", all(statuses), set("status")),
    buckets.length > 1 ? choice("Bucket", all(buckets), set("bucket")) : null,
    tags.length ? choice("Tag", all(tags), set("tag")) : null,
    scored ? el("label", {}, "Score from", number("low")) : null,
    scored ? el("label", {}, "to", number("high")) : null,
    choice("Sort by", ORDERS.map(([words], at) => [at, words]), (value) => set("order")(Number(value))),
    choice("Size", [["168px", "medium"], ["116px", "small"], ["300px", "large"]], (size) => tiles.grid.style.setProperty("--tile", size)),
    ROWS.some((row) => MOVING.test(row.media)) ? playing : null);
  const sheet = DATA.sheet;
  const lead = sheet.every === 1 ? null : `One of every ${count(sheet.every)} of ${count(sheet.rows)} rows, and with them the costliest, `
    + "those with the lowest and highest scores, the lowest PSNR, and the first that failed. Filters look at the rows on this sheet.";
  const made = section("sheet", "Contact sheet", lead, controls, found, tiles.grid, tiles.more);
  return { made, renew };
}
