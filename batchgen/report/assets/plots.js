// Plots by uPlot. Each has its main figures in words below its title.

const PLOTS = [];
const CLOCK = uPlot.sync("time");
const HEIGHT = 210;

function axes(across, up) {
  const common = {
    stroke: () => shade("--muted"), font: "11px system-ui, sans-serif", labelFont: "11px system-ui, sans-serif",
    grid: { stroke: () => shade("--line"), width: 1 }, ticks: { stroke: () => shade("--line"), width: 1 }, labelSize: 18,
  };
  return [{ ...common, size: 30, ...across }, { ...common, size: 56, values: (_, splits) => splits.map(brief), ...up }];
}

function plot(title, words, options, values) {
  const figured = el("figure", {}, el("figcaption", {}, el("h3", {}, title), el("p", {}, words)));
  const place = el("div", { role: "img", "aria-label": `${title}. ${words}` });
  figured.append(place);
  const made = new uPlot({ width: 600, height: HEIGHT, legend: { live: true }, ...options }, values, place);
  new ResizeObserver(() => {
    const width = Math.floor(place.clientWidth);
    if (width && width !== made.width) made.setSize({ width, height: HEIGHT });
  }).observe(place);
  PLOTS.push(made);
  return figured;
}

const fill = (name, opacity) => () => shade(name, opacity);
const bars = (wide = 0.9) => uPlot.paths.bars({ size: [wide, Infinity], gap: 0 });
const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);

// Beside an axis there is room for six letters.
const BRIEF = new Intl.NumberFormat("en-US", { notation: "compact", maximumSignificantDigits: 3 });
const brief = (number) => (Math.abs(number) < 10000 ? figure(number) : BRIEF.format(number));

const tens = (low, high, unit) => Array.from({ length: 3 * (high - low) }, (_, at) => unit * Number(`${[1, 2, 5][at % 3]}e${low + Math.floor(at / 3)}`));
const STEPS = [...tens(-5, 1, 1), 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, ...tens(0, 5, 86400)];

// In one unit over the whole axis.
function timeAxis(total) {
  const [size, unit] = [[86400, "d"], [3600, "h"], [60, "min"]].find(([size]) => total >= 2 * size) || (total < 0.2 ? [0.001, "ms"] : [1, "s"]);
  return { values: (_, splits) => splits.map((at) => `${figure(at / size)} ${unit}`), incrs: STEPS };
}

const workAxis = (line) => ({ ...timeAxis(line.work_s), label: "time with ranks at work", space: 60 });

// Rows by the time of their end, as rates, so that the length of a bin does not matter.
function throughput(line) {
  const middle = line.ok.map((_, at) => (at + 0.5) * line.bin_s);
  const rate = (rows) => rows.map((number) => 3600 * number / line.bin_s);
  const all = 3600 * sum(line.ok) / line.work_s;
  const pauses = line.pauses ? ` Pauses are left out: ${count(line.pauses)}.` : "";
  return plot("Throughput", `${pace(all)} rows an hour over ${duration(line.work_s)} of work.${pauses}`, {
    cursor: { sync: { key: CLOCK.key } },
    scales: { x: { time: false, range: [0, line.work_s] }, y: { range: (_, low, high) => [0, high * 1.08 || 1] } },
    axes: axes(workAxis(line), { label: "rows an hour" }),
    series: [
      { label: "at", value: (_, at) => (at === null ? "–" : duration(at)) },
      { label: "finished", stroke: () => shade("--hue-1"), fill: fill("--hue-1", 0.75), width: 0, paths: bars(1), points: { show: false }, value: (_, rows) => figure(rows) },
      ...(sum(line.failed) ? [{ label: "failed", stroke: () => shade("--bad"), fill: fill("--bad", 1), width: 0, paths: bars(1), points: { show: false }, value: (_, rows) => figure(rows) }] : []),
    ],
  }, sum(line.failed) ? [middle, rate(line.ok), rate(line.failed)] : [middle, rate(line.ok)]);
}

function ranksAtWork(line) {
  const most = Math.max(...line.ranks, 0);
  const full = line.ranks.filter((ranks) => ranks >= 0.9 * most).length / line.ranks.length;
  const words = `At most ${figure(most)}; ${(100 * full).toFixed(0)} % of the time at least nine tenths of that. A long slope at the end is a tail.`;
  return plot("Ranks at work", words, {
    cursor: { sync: { key: CLOCK.key } },
    scales: { x: { time: false, range: [0, line.work_s] }, y: { range: (_, low, high) => [0, Math.max(1, high) * 1.08] } },
    axes: axes(workAxis(line), { label: "ranks" }),
    series: [
      { label: "at", value: (_, at) => (at === null ? "–" : duration(at)) },
      { label: "ranks", stroke: () => shade("--hue-2"), fill: fill("--hue-2", 0.75), width: 0, paths: bars(1), points: { show: false }, value: (_, ranks) => figure(ranks) },
    ],
  }, [line.ranks.map((_, at) => (at + 0.5) * line.bin_s), line.ranks]);
}

// ------------------------------------------------------------------------------- measured
function againstPlan(rows) {
  const drawn = rows.filter((row) => row.seconds > 0 && row.predicted > 0 && !row.alias_of).sort((a, b) => a.predicted - b.predicted);
  if (!drawn.length) return null;
  const x = drawn.map((row) => row.predicted), y = drawn.map((row) => row.seconds);
  const ends = [Math.min(...x, ...y) / 1.4, Math.max(...x, ...y) * 1.4];
  const over = drawn.filter((row) => row.seconds > 2 * row.predicted).length;
  const from = DATA.sheet.every > 1 ? " Rows of the contact sheet." : "";
  const words = `${against(DATA.money.seconds, DATA.money.predicted)[0] === "–" ? "" : `All rows together: ${against(DATA.money.seconds, DATA.money.predicted)}. `}${count(over)} of ${several(drawn.length, "point")} took more than twice their prediction.${from}`;
  const log = { distr: 3, range: () => ends };
  return plot("A row's device time against its prediction", words, {
    scales: { x: { time: false, ...log }, y: log },
    axes: axes({ label: "predicted", ...TENS }, { label: "measured", ...TENS }),
    series: [
      { label: "predicted", value: (_, s) => (s === null ? "–" : duration(s)) },
      { label: "measured", stroke: () => shade("--hue-1"), paths: () => null, points: { show: true, size: 5, width: 0, fill: () => shade("--hue-1", 0.6) }, value: (_, s) => (s === null ? "–" : duration(s)) },
      { label: "as predicted", stroke: () => shade("--muted"), dash: [4, 4], width: 1, points: { show: false }, value: () => "" },
    ],
  }, [[ends[0], ...x, ends[1]], [null, ...y, null], [ends[0], ...x, ends[1]]]);
}

// Marks of a logarithmic axis, without uPlot's: those never end when an axis begins just below a power of ten.
const DIGITS = [1, 2, 3, 4, 5, 6, 7, 8, 9], FINER = [1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8];

function marks(low, high) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) {
    for (const digit of high / low > 1e9 ? [1] : high / low > 4 ? DIGITS : FINER) found.push(Number(`${digit}e${power}`));
  }
  return found.filter((at) => low <= at && at <= high);
}

// Their labels, of seconds: the more decades there are, the fewer of each, and no more than there is room for.
const SPARSER = [/./, /^[125]e/, /^1e/, /^1e.\d*[02468]$/, /^1e.\d*[05]$/, /^1e.\d*0$/];

function labels(splits, room = 12) {
  const reach = splits[splits.length - 1] / splits[0];
  const shown = (pattern) => splits.filter((at) => pattern.test(at.toExponential())).length;
  const patterns = SPARSER.slice(reach > 1000 ? 2 : reach > 4 ? 1 : 0).filter((pattern, at) => at === 0 || shown(pattern) > 1);
  const chosen = patterns.find((pattern) => shown(pattern) <= room) || patterns[patterns.length - 1];
  const words = (at) => (at < 0.1 || at >= 10000 ? duration(at) : `${figure(at)} s`);
  return splits.map((at) => (chosen.test(at.toExponential()) ? words(at) : null));
}

const TENS = {
  splits: (_, __, low, high) => marks(low, high),
  values: (made, splits, axis) => labels(splits, axis ? HEIGHT / 20 : made.width / 60),
  filter: (_, splits) => splits,
};

function histogram(found) {
  if (!found.counts.length) return null;
  const middle = found.counts.map((_, at) => Math.sqrt(found.edges[at] * found.edges[at + 1]));
  const places = middle.map((_, at) => at);
  const said = (digits) => found.edges.map((edge) => duration(Number(edge.toPrecision(digits))));
  const edges = new Set(said(2)).size < found.edges.length ? said(3) : said(2);
  const label = (at) => edges[at] || "";
  return plot("Device time of a row", `Half of the rows took at most ${duration(found.p50)}, 95 % at most ${duration(found.p95)}.`, {
    scales: { x: { time: false, range: [-0.5, places.length - 0.5] }, y: { range: (_, low, high) => [0, high * 1.08 || 1] } },
    axes: axes({ values: (_, splits) => splits.map((at) => (Number.isInteger(at) ? label(at) : "")), label: "from", space: 60 }, { label: "rows" }),
    series: [
      { label: "from", value: (_, at) => (at === null ? "–" : `${label(at)} to ${label(at + 1)}`) },
      { label: "rows", stroke: () => shade("--hue-3"), fill: fill("--hue-3", 0.75), width: 0, paths: bars(), points: { show: false }, value: (_, rows) => (rows === null ? "–" : count(rows)) },
    ],
  }, [places, found.counts]);
}

function busiest(most, mean) {
  if (!(mean > 0)) return "No attempt has worked yet.";
  const times = figure(most / mean);
  return times === "1" ? `Each attempt worked ${duration(mean)}.` : `The busiest attempt worked ${times} times as long as the mean of ${duration(mean)}.`;
}

// Stacked: each series is drawn from zero, the highest sum first, so that lower ones lie over it.
function balance(ranks) {
  const parts = [["tail", "--tail"], ["idle", "--idle"], ["busy", "--hue-1"], ["load", "--hue-4"]];
  const sums = [];
  let below = ranks.load.map(() => 0);
  for (const [name] of [...parts].reverse()) {
    below = below.map((height, at) => height + ranks[name][at]);
    sums.unshift(below);
  }
  const shown = ranks.total > ranks.tag.length ? ` ${ranks.tag.length} of ${count(ranks.total)} attempts, evenly.` : "";
  const words = busiest(Math.max(...ranks.busy), sum(ranks.busy) / ranks.busy.length) + shown;
  return plot("Balance: attempts by the time they were there", words, {
    scales: { x: { time: false, range: [-0.6, Math.max(ranks.tag.length, 3) - 0.4] }, y: { range: (_, low, high) => [0, high * 1.08 || 1] } },
    axes: axes({ values: (_, splits) => splits.map((at) => ranks.tag[at] || ""), label: "attempt", space: 80 }, timeAxis(Math.max(...sums[0]))),
    series: [
      { label: "attempt", value: (_, at) => (at === null ? "–" : `${ranks.tag[at]} on ${ranks.host[at]}, ${several(ranks.rows[at], "row")}, ${ranks.ended[at]}`) },
      ...parts.map(([name, color]) => ({
        label: name, stroke: () => shade(color), fill: () => shade(color), width: 0, paths: bars(0.82), points: { show: false },
        value: (u, _, __, at) => (at === null ? "–" : duration(ranks[name][at])),
      })),
    ],
  }, [ranks.tag.map((_, at) => at), ...sums]);
}

// In the colors of the theme, with the bars, which keep theirs where only axes are drawn anew.
function redraw() {
  for (const made of PLOTS) {
    made.redraw();
    made.root.querySelectorAll(".u-marker").forEach((mark, at) => {
      const { stroke, fill } = made.series[at];
      if (at) Object.assign(mark.style, { borderColor: stroke(made, at), background: fill(made, at) });
    });
  }
}
