// Puts the page together. Plots and tables come after the first tiles are on the screen.

function timing() {
  if (!(DATA.timeline.work_s > 0)) return null;
  return section("timing", "Timing", null, el("div", { class: "plots" },
    throughput(DATA.timeline), ranksAtWork(DATA.timeline), againstPlan(ROWS), histogram(DATA.money.histogram),
    DATA.ranks.total > 1 ? balance(DATA.ranks) : null));
}

function navigation(sections) {
  const { failed, quarantined } = DATA.counts;
  const item = (made) => el("li", {}, el("a", { href: `#${made.id}` }, made.querySelector("h2").textContent,
    made.id === "failures" ? el("b", {}, ` ${count(failed + quarantined)}`) : null));
  document.getElementById("nav").append(el("ul", {}, sections.map(item)));
}

function main() {
  const detail = new Detail(document.getElementById("detail"));
  const open = (row, rows) => detail.open(row, rows);
  head();
  const sheet = contactSheet(open);
  const place = document.getElementById("main");
  place.append(sheet.made);
  sheet.renew();
  requestAnimationFrame(() => {
    const sections = [sheet.made, failures(open), money(), timing(), slowest(open), shortages(open), caches(open), configuration()].filter(Boolean);
    place.append(...sections.slice(1));
    place.append(el("footer", {}, "Written by batchgen report; media are loaded from this folder, nothing from elsewhere."));
    navigation(sections);
    document.body.dataset.ready = "true";
  });
}

main();
