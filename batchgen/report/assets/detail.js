// One row, large, with what is known of it. Arrow keys go through the rows as the sheet shows them.

class Detail {
  constructor(dialog) {
    this.dialog = dialog;
    dialog.addEventListener("keydown", (event) => {
      if (event.target.closest("video, select, input")) return;
      if (event.key === "ArrowRight") this.turn(1);
      if (event.key === "ArrowLeft") this.turn(-1);
    });
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
    dialog.addEventListener("close", () => dialog.replaceChildren());
  }

  open(row, rows) {
    this.rows = rows;
    this.at = rows.indexOf(row);
    this.draw();
    if (!this.dialog.open) this.dialog.showModal();
  }

  turn(by) {
    if (this.rows.length < 2) return;
    this.at = (this.at + by + this.rows.length) % this.rows.length;
    this.draw();
    this.dialog.querySelector(by < 0 ? ".previous" : ".next").focus();
  }

  draw() {
    const row = this.rows[this.at];
    const inside = row.status === "ok" ? media(row, true) : null;
    if (inside) inside.src = source(row);
    const small = Math.max(row.width, row.height) <= 128;
    const step = (words, by) => el("button", { type: "button", class: by < 0 ? "previous" : "next", autofocus: by > 0, "aria-label": words, on: { click: () => this.turn(by) } }, by < 0 ? "←" : "→");
    this.dialog.replaceChildren(el("div", { class: "sheet-row" },
      el("div", { class: small ? "stage small" : "stage" }, inside || placeholder(row)),
      el("div", { class: "about" },
        el("div", { class: "turn" }, this.rows.length > 1 ? [step("previous row", -1), step("next row", 1)] : null,
          el("span", { class: "muted num" }, `${count(this.at + 1)} of ${count(this.rows.length)}`),
          el("button", { type: "button", class: "end", on: { click: () => this.dialog.close() } }, "Close")),
        el("h2", { id: "detail-title", class: "mono", style: { "margin-top": "14px" } }, row.id),
        el("p", { class: "prompt" }, row.prompt),
        el("dl", {}, facts(row).flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])),
        row.media ? el("p", {}, el("a", { href: source(row), target: "_blank", rel: "noopener" }, row.media)) : null)));
    if (inside && inside.tagName === "VIDEO") play(inside);
  }
}

function facts(row) {
  const before = row.restored ? `, behind ${several(row.restored, "step")} of an earlier attempt` : "";
  const cache = row.computed < row.total ? `${figure(row.computed)} of ${count(row.total)} evaluations` : several(row.total, "evaluation");
  const measured = row.seconds === null ? null : `${duration(row.seconds)}, predicted ${duration(row.predicted)} (${against(row.seconds, row.predicted)})`;
  return [
    ["status", row.status],
    ["error", row.error],
    ["size", `${row.width} × ${row.height}` + (row.frames > 1 ? `, ${row.frames} frames at ${figure(row.fps)} a second` : "")],
    ["steps", row.total ? `${row.steps}; ${cache}${before}` : String(row.steps)],
    ["cache", row.cache],
    ["seed", row.seed],
    ["device time", measured],
    ["score", row.score === null ? "" : figure(row.score, 4)],
    ["PSNR, SSIM", row.psnr === null ? "" : `${figure(row.psnr)} dB, ${figure(row.ssim)}`],
    ["tags", row.tags],
    ["shares media of", row.alias_of],
    ["to draw it again", el("code", {}, `batchgen retry ${DATA.about.run} --rows ${row.id}`)],
    ["short of memory", row.rung],
    ["drawn by", row.attempt && `${row.attempt} on ${row.host}`],
  ].filter(([, value]) => value);
}
