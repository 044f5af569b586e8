"use strict";
// Elements and words. Text from rows is only ever set as text or as a property, never as markup.

const DATA = JSON.parse(document.getElementById("data").textContent);

function el(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "class") made.className = value;
    else if (key === "on") for (const [event, act] of Object.entries(value)) made.addEventListener(event, act);
    else if (key === "style") for (const [css, set] of Object.entries(value)) made.style.setProperty(css, set);
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

const count = (number) => number.toLocaleString("en-US");
const several = (number, name) => `${count(number)} ${name}${number === 1 ? "" : "s"}`;
const percent = (part, whole, digits = 0) => (whole > 0 ? (100 * part / whole).toFixed(digits) : "0") + " %";

function figure(value, digits = 3) {
  if (value === null || !Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  if (Math.abs(value) >= 1e15) return value.toPrecision(digits);
  const said = Number(value.toPrecision(digits));
  return Math.abs(said) >= 1000 ? count(Math.round(value)) : String(said);
}

// A rate, in three digits: more would be noise, and two clocks would seem to contradict each other.
const pace = (value) => figure(value === null ? null : Number(value.toPrecision(3)));

function duration(seconds) {
  if (seconds === null || !Number.isFinite(seconds)) return "–";
  for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
    if (Math.abs(seconds) >= 2 * size) return figure(seconds / size) + " " + unit;
  }
  if (Math.abs(seconds) >= 0.1 || seconds === 0) return figure(seconds) + " s";
  return Math.abs(seconds) >= 1e-4 ? figure(seconds * 1e3) + " ms" : figure(seconds * 1e6) + " µs";
}

// Time of ranks, in hours where there are some.
function rankTime(hours) {
  const unit = DATA.money.unit.replace(/s$/, "");
  const said = figure(hours);
  return hours >= 0.1 ? `${said} ${unit}${said === "1" ? "" : "s"}` : duration(3600 * hours);
}

function moment(unix) {
  const two = (number) => String(number).padStart(2, "0");
  const at = new Date(unix * 1000);
  return `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())} ${two(at.getHours())}:${two(at.getMinutes())}`;
}

// A share that is measured against what was predicted: "12 % above".
function against(measured, predicted) {
  if (!(predicted > 0) || !(measured > 0)) return "–";
  const change = 100 * (measured / predicted - 1);
  if (Math.abs(change) < 0.5) return "as predicted";
  return change > 200 ? `${figure(measured / predicted)} times` : `${Math.abs(change).toFixed(0)} % ${change > 0 ? "above" : "below"}`;
}

// Bars are pictures of figures that stand beside them, so readers of the screen skip them.
function bar(parts, tall = false) {
  const whole = parts.reduce((sum, part) => sum + part.size, 0) || 1;
  const pieces = parts.filter((part) => part.size > 0).map((part) =>
    el("i", { title: part.title, style: { width: `${100 * part.size / whole}%`, background: part.color } }));
  return el("div", { class: tall ? "bar tall" : "bar", "aria-hidden": "true" }, pieces);
}

function section(id, title, lead, ...children) {
  return el("section", { id, "aria-labelledby": `${id}-title` },
    el("h2", { id: `${id}-title` }, title), lead ? el("p", { class: "lead" }, lead) : null, ...children);
}

// `columns`: {name, of(row), kind: "n" | "tight" | ""}.
function table(caption, columns, rows, aside = null) {
  const cells = (row) => columns.map((column) => el("td", { class: column.kind }, column.of(row)));
  return el("div", { class: "scroll" }, el("table", { class: "t" },
    caption ? el("caption", {}, caption) : null,
    el("thead", {}, el("tr", {}, columns.map((c) => el("th", { scope: "col", class: c.kind === "n" ? "n" : null }, c.name)))),
    el("tbody", {}, rows.map((row) => el("tr", {}, cells(row))))), aside);
}

// A canvas knows no variables: the color that a variable stands for now, as `rgb(...)`.
const PROBE = document.body.appendChild(el("i", { hidden: true }));

function shade(name, opacity = 1) {
  PROBE.style.color = `var(${name})`;
  const [r, g, b] = getComputedStyle(PROBE).color.match(/[\d.]+/g);
  return `rgb(${r} ${g} ${b} / ${opacity})`;
}
