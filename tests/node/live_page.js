// Opens the live page in Chromium, and checks what a user would see.
//
//   node live_page.js CHECK URL SCREENSHOTS [MORE]
//
// CHECK is one of the checks at the end of this file. If a check fails, the script says why and exits with 1. Pictures go
// to the directory SCREENSHOTS.
"use strict";
const assert = require("node:assert/strict");
const path = require("node:path");
const axe = require("axe-core");
const { chromium } = require("playwright-core");

const [check, url, screenshots, ...more] = process.argv.slice(2);
const WIDE = { width: 1200, height: 860 }, NARROW = { width: 360, height: 740 };
// By default Chromium asks for updates and looks up its maker's hosts.
const QUIET = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync"];
const PATIENCE = 120_000;

/** Opens the page, and takes note of what it asks for and complains about. */
async function open(browser, options = {}, prepare = () => {}) {
  const context = await browser.newContext({ viewport: WIDE, locale: "en-GB", timezoneId: "UTC", ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(PATIENCE);
  const complaints = [], asked = [];
  page.on("console", message => { if (["error", "warning"].includes(message.type())) complaints.push(message.text()); });
  page.on("pageerror", error => complaints.push(String(error)));
  page.on("request", request => asked.push(request.url()));
  await prepare(page);
  await page.goto(url);
  return { page, complaints, asked };
}

/** Nothing from elsewhere, and no complaint but those that are expected. */
function assertQuiet({ complaints, asked }, expected = /^$/) {
  assert.deepEqual(complaints.filter(text => !expected.test(text)), []);
  assert.ok(asked.length > 1, "it asks for its numbers");
  assert.deepEqual(asked.filter(request => new URL(request).origin !== new URL(url).origin && !request.startsWith("data:")), []);
}

/** By axe-core: nothing serious or critical, and nothing that is wider than the screen. */
async function assertUsable(page, name) {
  await page.evaluate(axe.source);
  const { violations, passes } = await page.evaluate(() => window.axe.run());
  const found = violations.filter(({ impact }) => ["serious", "critical"].includes(impact));
  assert.deepEqual(found.map(({ id, nodes }) => `${name}: ${id}: ${nodes.map(node => node.html).join(" ")}`), []);
  assert.ok(passes.some(({ id }) => id === "color-contrast"), "axe-core looked at colours");
  const [needed, there] = await page.evaluate(() => [document.scrollingElement.scrollWidth, innerWidth]);
  assert.ok(needed <= there, `${name}: ${needed} pixels wide on a screen of ${there}`);
}

/** Light and dark, wide and narrow. */
async function assertLooks(page, name) {
  for (const colorScheme of ["light", "dark"]) {
    for (const [width, viewport] of Object.entries({ wide: WIDE, narrow: NARROW })) {
      await page.emulateMedia({ colorScheme, reducedMotion: "reduce" });
      await page.setViewportSize(viewport);
      await page.waitForFunction(width => document.querySelector("#chart").getAttribute("viewBox")?.split(" ")[2] === String(width),
        await page.evaluate(() => document.querySelector("#chart").clientWidth));
      const look = `${name}-${colorScheme}-${width}`;
      await assertUsable(page, look);
      await page.screenshot({ path: path.join(screenshots, `${look}.png`), fullPage: true });
    }
  }
  await page.setViewportSize(WIDE);
}

const status = async headers => (await fetch(`${url}status`, { headers })).json();
const text = (page, selector) => page.locator(selector).textContent();
const says = (page, selector, pattern) => page.waitForFunction(
  ([selector, source]) => new RegExp(source).test(document.querySelector(selector).textContent), [selector, pattern.source]);

async function send(ids, headers) {
  const answer = await fetch(`${url}api/verve/accept`, {
    method: "POST", headers: { "content-type": "application/json", ...headers }, body: JSON.stringify(ids),
  });
  assert.equal(await answer.text(), "ok");
}

/** The count that is shown reaches what was sent: exact counts, in a window that does not end. */
async function count(browser) {
  const opened = await open(browser), { page } = opened;
  await says(page, "#current", /^0$/);
  await send(Array.from({ length: 1234 }, (_, id) => id));
  await says(page, "#current", /^1,234$/);
  await send([1, 2, 3, 5000]);
  await says(page, "#current", /^1,235$/);
  assert.equal(await page.getAttribute("#current", "data-count"), "1235");
  await says(page, "#rate", /^[\d.]+accepted by 1 instance seen here$/);
  assert.match(await text(page, "#mode"), /^exact/);
  assert.equal(await text(page, "#state"), "All well");
  assert.match(await text(page, "#leader"), /which answers here$/);
  assert.equal(await text(page, "#last-note"), "none is closed yet");
  await assertUsable(page, "no window yet");
  assertQuiet(opened);
  await assertStrict(page);
}

/** The policy lets nothing in that is not in the file. */
async function assertStrict(page) {
  const ran = await page.evaluate(async () => {
    const script = document.createElement("script");
    script.textContent = "window.ran = true";
    document.body.append(script);
    const elsewhere = await fetch("http://elsewhere.invalid/").then(() => true, () => false);
    const style = Object.assign(document.createElement("style"), { textContent: "body { opacity: .5 }" });
    document.body.append(style);
    return [window.ran === true, elsewhere, getComputedStyle(document.body).opacity];
  });
  assert.deepEqual(ran, [false, false, "1"]);
}

/** A mark for each closed window, in the order of time, with what is known of it; MORE is how many to wait for. */
async function chart(browser) {
  const [least = 8] = more, opened = await open(browser), { page } = opened;
  const sending = setInterval(() => send(Array.from({ length: 300 }, () => Math.floor(Math.random() * 5000))).catch(() => {}), 50);
  const marks = () => page.locator("#chart .mark").evaluateAll(marks => marks.map(mark => ({
    timestamp: mark.dataset.window, complete: mark.dataset.complete === "true", x: Number(mark.getAttribute("cx")),
  })));
  await page.waitForFunction(least => document.querySelectorAll("#chart .mark").length >= least, least, { timeout: 3 * PATIENCE });
  // Until none ends in between.
  for (const deadline = Date.now() + PATIENCE; ;) {
    const [before, shown, after] = [await status(), await marks(), await status()];
    const [first, ...others] = [before.windows, shown, after.windows].map(windows => windows.at(-1).timestamp);
    if (others.some(timestamp => timestamp !== first)) {
      assert.ok(Date.now() < deadline, `${shown.length} marks, ${after.windows.length} windows`);
      continue;
    }
    assert.deepEqual(shown.map(({ timestamp, complete }) => ({ timestamp, complete })),
      after.windows.map(({ timestamp, complete }) => ({ timestamp, complete })));
    assert.ok(shown.every((mark, index) => index === 0 || mark.x > shown[index - 1].x));
    break;
  }
  await says(page, "#repeats", /^[\d.]+%/);
  // The service was just started: of its history it knows the running hour and day.
  for (const id of ["hours", "days"]) {
    await page.waitForFunction(id => document.querySelectorAll(`#${id} .mark[data-complete=false]`).length > 0, id);
  }
  assert.ok(await page.locator("#chart .band").count() > 0, "an error band");
  await says(page, "#current-note", /95 %: [\d,]+ to [\d,]+$/);

  await page.focus("#chart");
  await announces(page, ["ArrowLeft", "ArrowLeft"], ["ArrowRight", "ArrowLeft"], /of [\d,]+ accepted/);
  assert.match(await text(page, "#chart-reading"), /of [\d,]+ accepted/);
  await page.click("summary");
  assert.ok(await page.locator("#chart-rows tr").count() >= 8);
  await assertUsable(page, "with its table");
  await page.click("summary");
  await assertLooks(page, "windows");
  clearInterval(sending);
  assertQuiet(opened);
}

/** MORE is the token. */
async function access(browser) {
  const [right] = more, opened = await open(browser), { page } = opened;
  await page.waitForSelector("#access:visible");
  await assertUsable(page, "asking for the token");
  await page.screenshot({ path: path.join(screenshots, "token.png"), fullPage: true });
  await page.fill("#token", "t\u00f8\u0142en that no header takes");
  await page.keyboard.press("Enter");
  assert.equal(await page.evaluate(() => sessionStorage.length), 0, "it is not taken");
  await page.fill("#token", "not-the-right-one");
  await page.keyboard.press("Enter");
  await says(page, "#why", /did not accept/);
  await page.fill("#token", right);
  await page.click("button");
  await says(page, "#current", /^0$/);
  assert.ok(!(await page.isVisible("#access")));
  assert.equal(await page.evaluate(() => document.activeElement.id), "name");
  await page.reload();
  await says(page, "#current", /^0$/);
  assertQuiet(opened, /401/);
  assert.ok(opened.asked.every(request => !request.includes(right)), "the token is in no URL");
  const other = await open(browser);
  await other.page.waitForSelector("#access:visible");
}

/** The elements of a body: counter `names[k]` gets `sizes[k]` ids. */
const elements = (names, sizes) => names.flatMap((name, k) => Array.from({ length: sizes[k] }, (_, id) => ({ id, counters: [name] })));
const numbered = number => `c-${String(number).padStart(2, "0")}`;
const LONGEST = "a-long-name.".repeat(11).slice(0, 128);
/** 25 counters, in the order of their counts: 25 ids, 24, and so on. */
const TWENTY_FIVE = [LONGEST, ...Array.from({ length: 24 }, (_, k) => numbered(24 - k))];

/** Sends to all counters so often that every window has them all, until what it returns is called. */
function keepSending(names = TWENTY_FIVE, sizes = names.map((_, k) => names.length - k), headers = {}) {
  const sending = setInterval(() => send(elements(names, sizes), headers).catch(() => {}), 300).unref();
  return () => clearInterval(sending);
}

const namesShown = page => page.locator("#counter-rows th").allTextContents();
const showsNames = (page, names) => page.waitForFunction(
  names => [...document.querySelectorAll("#counter-rows th")].map(name => name.textContent).join(" ") === names, names.join(" "));
/** Until the rest of the page shows another window. */
const anotherWindow = async page => page.waitForFunction(
  before => document.querySelector("#last-note").textContent !== before, await text(page, "#last-note"));
const listsAsked = asked => asked.map(request => new URL(request)).filter(({ pathname }) => pathname.endsWith("/api/verve/counters"));

/** There are none at first, then 25: the largest twenty, in both orders, and those with a prefix. */
async function counters(browser) {
  const opened = await open(browser), { page, asked } = opened;
  // The second request is after the answer to the first.
  while (listsAsked(asked).length < 2) await page.waitForRequest(/counters/);
  assert.ok(!(await page.isVisible("#counters")), "no counter was used yet");

  const stop = keepSending(), largest = TWENTY_FIVE.slice(0, 20);
  await showsNames(page, largest);
  const counts = await page.locator("#counter-rows td").allTextContents();
  assert.deepEqual(counts.map(parseFloat), Array.from(largest, (_, k) => 25 - k));
  // Until no window ends in between.
  for (const deadline = Date.now() + PATIENCE; ;) {
    const about = await text(page, "#counters-about");
    const { timestamp, complete } = await (await fetch(`${url}api/verve/counters?order=count&limit=20`)).json();
    if (complete && about === `20 of 25 counters · window from ${timestamp.slice(11, 19)}`) break;
    assert.ok(Date.now() < deadline, `${about}, and ${timestamp}, ${complete}`);
    await page.waitForTimeout(100);
  }
  const cells = await page.locator("#counter-rows td").allTextContents();
  assert.ok(cells.every(cell => /^\d+$/.test(cell)), "no notes: all is exact and complete");

  await assertSorts(page, largest);
  await assertFilters(page, asked, largest);
  await assertLooks(page, "counters");

  // Once a window, or a little more often if one ended meanwhile.
  const [lists, windows] = [listsAsked(asked).length, (await status()).windows.length];
  await page.waitForTimeout(5_000);
  const [more, later] = [listsAsked(asked).length - lists, (await status()).windows.length - windows];
  assert.ok(more > 0 && more <= later + 1, `${more} lists in ${later} windows`);
  assertQuiet(opened);
  await assertMarkupIsText(page);
  stop();
}

async function assertSorts(page, largest) {
  const sorts = () => page.locator("#counters thead th").evaluateAll(all => all.map(one => one.ariaSort));
  const button = by => page.locator(`#counters th button[data-by=${by}]`);
  const byName = [...largest].sort();
  assert.deepEqual(await sorts(), ["none", "descending"]);
  await button("name").click();
  assert.deepEqual([await namesShown(page), await sorts()], [byName, ["ascending", "none"]]);
  await page.keyboard.press("Enter");
  assert.deepEqual([await namesShown(page), await sorts()], [[...byName].reverse(), ["descending", "none"]]);
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement.dataset.by), "count");
  assert.equal(await button("count").evaluate(one => getComputedStyle(one).outlineWidth), "3px", "the focus can be seen");
  await page.keyboard.press("Space");
  assert.deepEqual([await namesShown(page), await sorts()], [largest, ["none", "descending"]]);
  await page.keyboard.press("Space");
  assert.deepEqual([await namesShown(page), await sorts()], [[...largest].reverse(), ["none", "ascending"]]);
  await button("count").click();
}

async function assertFilters(page, asked, largest) {
  const prefixes = () => new Set(listsAsked(asked).map(({ searchParams }) => searchParams.get("prefix")));
  const filter = page.getByLabel("Names that begin with");
  await filter.evaluate(input => ["c", "c-", "c-0"].forEach(value => {
    input.value = value;
    input.dispatchEvent(new Event("input"));
  }));
  await showsNames(page, [9, 8, 7, 6, 5, 4, 3, 2, 1].map(numbered));
  await says(page, "#counters-about", /^9 of 9 counters that begin with c-0 · window from/);
  assert.deepEqual(prefixes(), new Set(["", "c-0"]), "it waits until the user has typed");
  await filter.fill("c-01");
  await says(page, "#counters-about", /^1 of 1 counter that begins with c-01 · window from/);
  const announced = says(page, "#announcement", /^No counter that begins/);
  await filter.fill("no such name");
  await says(page, "#counters-about", /^No counter that begins with no such name had ids · window from/);
  await announced;
  assert.deepEqual(await namesShown(page), []);
  assert.ok(await filter.isVisible());
  await assertUsable(page, "no match");
  await filter.fill("");
  await showsNames(page, largest);
}

/** The service has no such names; the page does not rely on it. */
async function assertMarkupIsText(page) {
  const name = "<img src=x onerror='window.ran = true'>";
  await page.route("**/api/verve/counters?*", route => route.fulfill({ json: {
    timestamp: "2026-11-23T04:12:00Z", window_seconds: 60, complete: true, counters: [{ counter: name, unique_request_count: 1 }],
    total_counters: 1,
  } }));
  await page.getByLabel("Names that begin with").fill("<img>");
  await showsNames(page, [name]);
  await says(page, "#counters-about", /begins with <img> /);
  assert.equal(await page.locator("#counters img").count(), 0);
  assert.equal(await page.evaluate(() => window.ran), undefined);
}

/** Of three names two have a place, in a service of several shards with a token; MORE is the token. */
async function overflow(browser) {
  const [token] = more, authorization = { authorization: `Bearer ${token}` };
  const stop = keepSending(["a", "b", "c"], [5000, 200, 30], authorization), opened = await open(browser), { page } = opened;
  await page.fill("#token", token);
  await page.keyboard.press("Enter");
  await showsNames(page, ["a", "b", "_other"]);
  await says(page, "#counters-about", /^3 of 3 counters · window from [\d:]+ · incomplete/);
  await page.waitForSelector("#other:visible");
  assert.match(await text(page, "#other"), /_other counts the ids for whose counter there was no place/);
  const cells = await page.locator("#counter-rows td").allTextContents();
  assert.ok(cells.every(cell => /incomplete$/.test(cell)), `${cells}`);
  // The error of a counter is that of one sketch, and not that of the total.
  const ofOne = await (await fetch(`${url}api/verve/unique?counter=a`, { headers: authorization })).json();
  assert.ok(ofOne.standard_error > 1.9 * (await status(authorization)).standard_error);
  const [, count, low, high] = cells[0].replaceAll(",", "").match(/^(\d+)95 %: (\d+) to (\d+)/).map(Number);
  const [least, most] = [1 - 2 * ofOne.standard_error, 1 + 2 * ofOne.standard_error];
  assert.deepEqual([low, high], [Math.ceil(count * least), Math.floor(count * most)]);
  await assertLooks(page, "overflow");
  await page.fill("#prefix", "a");
  await showsNames(page, ["a"]);
  assert.ok(!(await page.isVisible("#other")), "it is not shown");
  await says(page, "#counters-about", /incomplete/);
  stop();
  // Now no counter has ids: that is said, and the section stays.
  await page.fill("#prefix", "");
  await says(page, "#counters-about", /^No counter had ids · window from/);
  assertQuiet(opened, /401/);
}

/** What fails or comes late: the last numbers stay, and the rest of the page goes on. */
async function failures(browser) {
  const stop = keepSending(), opened = await open(browser), { page } = opened;
  const largest = TWENTY_FIVE.slice(0, 20), lists = "**/api/verve/counters?*";
  await showsNames(page, largest);
  for (const [fail, expected] of [
    [route => route.fulfill({ status: 503, body: "failed" }), /^The service answers 503: these are the last numbers/],
    [route => route.abort(), /^No answer: these are the last numbers/],
    [route => route.fulfill({ body: "no JSON" }), /^No answer: these are the last numbers/],
  ]) {
    await page.route(lists, fail);
    await page.waitForSelector("#counters-trouble:visible");
    assert.match(await text(page, "#counters-trouble"), expected);
    assert.deepEqual(await namesShown(page), largest);
    await anotherWindow(page);
    assert.equal(await text(page, "#state"), "All well");
    await assertUsable(page, "counters fail");
    await page.screenshot({ path: path.join(screenshots, "counters-fail.png"), fullPage: true });
    await page.unroute(lists, fail);
    await page.waitForSelector("#counters-trouble", { state: "hidden" });
  }

  // The answer to `c-1` comes after that to `c-2`, if at all.
  let release, held = new Promise(resolve => release = resolve);
  await page.route(/prefix=c-1/, async route => {
    await held;
    await route.continue().catch(() => {});
  });
  const waits = page.waitForRequest(/prefix=c-1/), filter = page.getByLabel("Names that begin with");
  await filter.fill("c-1");
  await waits;
  await anotherWindow(page);
  await filter.fill("c-2");
  const twenties = [24, 23, 22, 21, 20].map(numbered);
  await showsNames(page, twenties);
  release();
  await page.waitForTimeout(1_000);
  assert.deepEqual(await namesShown(page), twenties);
  stop();
  assertQuiet(opened, /503|ERR_FAILED|ERR_ABORTED/);
}

/** Where there are no counters, it does not ask for them. */
async function none(browser) {
  const opened = await open(browser), { page, asked } = opened;
  await page.waitForFunction(() => document.querySelectorAll("#chart .mark").length >= 4);
  assert.equal(listsAsked(asked).length, 0);
  assert.ok(!(await page.isVisible("#counters")));
  assert.ok(!(await page.isVisible("#overlaps")), "there is nothing to compare");
  assert.ok(await page.isVisible("#retention") && !(await page.isVisible("#retention-counter")), "returns are of all ids");
  assert.equal(await text(page, "#state"), "All well");
  assertQuiet(opened);
}

const historyAsked = asked => asked.map(request => new URL(request)).filter(({ pathname }) => pathname.endsWith("/api/verve/series"));
const DAY = 86_400, at = seconds => new Date(seconds * 1000).toISOString().replace(".000Z", "Z");

/** An answer of the service, as it was asked for. The newest step is running, the oldest is before the first start. */
function seriesFor(request, unlike = {}) {
  const { searchParams } = new URL(request), [from, to] = ["from", "to"].map(edge => Date.parse(searchParams.get(edge)) / 1000);
  const step = searchParams.get("step"), seconds = { hour: 3600, day: DAY }[step], steps = (to - from) / seconds;
  const counts = Array.from({ length: steps }, (_, k) => ({
    timestamp: at(from + k * seconds), unique_request_count: k === 0 ? 0 : 100_000 + 1_000 * k, complete: k > 0 && k < steps - 1, ...unlike[k],
  }));
  return { mode: "hll", standard_error: 0.008125, step, step_seconds: seconds, from: at(from), to: at(to), counts };
}

/** Keys lead to an announcement. A window that closes meanwhile is announced, too: then other keys lead to it once more. */
async function announces(page, keys, again, pattern) {
  for (const some of [keys, ...Array(20).fill(again)]) {
    for (const key of some) await page.keyboard.press(key);
    const said = await text(page, "#announcement");
    if (pattern.test(said)) return;
    assert.match(said, /^Last window: /);
  }
  assert.fail(`a window was announced each time, and not ${pattern}`);
}

/** A mark for each hour and each day of which something is known. The answers are made up: no test takes 35 days. */
async function history(browser) {
  const began = Date.now();
  const opened = await open(browser, {}, async page => {
    await page.route("**/api/verve/series?*", route => route.fulfill({ json: seriesFor(route.request().url(), { 20: { complete: false } }) }));
  }), { page, asked } = opened;
  for (const [id, step, steps] of [["hours", "hour", 48], ["days", "day", 35]]) {
    await says(page, `#${id}-title`, new RegExp(`^The last ${steps} ${step}s \\(UTC\\)$`));
    await page.waitForFunction(([id, marks]) => document.querySelectorAll(`#${id} .mark`).length === marks, [id, steps - 1]);
    const incomplete = await page.locator(`#${id} .mark[data-complete=false]`).count();
    assert.equal(incomplete, 2, "one, and the running one");
    assert.equal(await page.locator(`#${id} .band`).count(), 1);
    assert.ok(!(await page.isVisible(`#${id}-trouble`)));
    await page.focus(`#${id}`);
    await page.keyboard.press("ArrowLeft");
    assert.match(await text(page, `#${id}-reading`), /: 1[\d,]+ \(95 %: [\d,]+ to [\d,]+\), incomplete$/);
    await announces(page, ["ArrowLeft"], ["ArrowRight", "ArrowLeft"], /: 1[\d,]+ \(95 %: [\d,]+ to [\d,]+\)$/);
    assert.match(await text(page, `#${id}-text`), new RegExp(`^${steps - 1} ${step}s from .* to .*: from 101,000 to 1[\\d,]+ different ids`));
    assert.equal(await page.locator(`#${id}-rows tr`).count(), steps - 1);
  }
  await assertLooks(page, "history");
  // Not again within a minute.
  await page.waitForTimeout(3_000);
  const minutes = 1 + Math.floor((Date.now() - began) / 60_000);
  for (const step of ["hour", "day"]) {
    const times = historyAsked(asked).filter(({ searchParams }) => searchParams.get("step") === step).length;
    assert.ok(times >= 1 && times <= minutes, `asked ${times} times for ${step}s within ${minutes} minutes`);
  }
  assertQuiet(opened);
  await assertRefusals(browser);
}

const refuse = (route, reason, detail) => route.fulfill({
  status: 400, body: "failed", headers: { "failure-reason": reason, "failure-detail": detail },
});

/** What is refused, or only kept for a shorter time. */
async function assertRefusals(browser) {
  const opened = await open(browser, {}, page => page.route("**/api/verve/series?*", route => {
    const url = route.request().url(), { step, counts } = seriesFor(url);
    if (step === "day") return refuse(route, "not_available", "the service keeps no days");
    return counts.length > 12 ? refuse(route, "range_not_kept", "nothing is kept of it") : route.fulfill({ json: seriesFor(url) });
  })), { page, asked } = opened;
  await says(page, "#hours-title", /^The last 12 hours \(UTC\)$/);
  assert.equal(await page.locator("#hours .mark").count(), 11);
  await says(page, "#days-trouble", /^The service keeps no days\.$/);
  assert.ok(!(await page.isVisible("#days")));
  assert.equal(historyAsked(asked).length, 4);
  await assertUsable(page, "refused days");
  assertQuiet(opened, /400/);
}

/** The count of a range, from the service itself; and why it refuses. */
async function ranges(browser) {
  const opened = await open(browser, {}, page => page.route("**/api/verve/series?*", route => route.fulfill({ json: seriesFor(route.request().url()) })));
  const { page, asked } = opened, field = name => page.getByLabel(`${name} (UTC)`);
  await send(Array.from({ length: 3_000 }, (_, id) => id));
  await page.waitForFunction(() => document.querySelector("#from").value);
  for (const [name, seconds, back, steps] of [["This hour", 3600, 0, 1], ["Today", DAY, 0, 1], ["Last 7 days", DAY, 6, 7]]) {
    const announced = says(page, "#announcement", /^[\d,]+ different ids from/);
    await page.getByRole("button", { name }).click();
    await announced;
    await says(page, "#range-note", /incomplete: not over, or ids may be missing$/);
    const [from, to] = [await field("From").inputValue(), await field("To").inputValue()].map(value => Date.parse(`${value}Z`) / 1000);
    assert.equal(to - from, steps * seconds);
    assert.ok(from % seconds === 0 && from <= Date.now() / 1000 - back * seconds, name);
    assert.match(await text(page, "#range-note"), /^from [\d-]+ [\d:]+ to [\d-]+ [\d:]+ UTC · 95 %: [\d,]+ to [\d,]+ · /);
    const count = Number((await text(page, "#range-count")).replace(",", ""));
    assert.ok(Math.abs(count - 3_000) < 5 * 0.008125 * 3_000, `${name}: ${count}`);
  }
  await assertLooks(page, "ranges");

  // A closed window.
  const { timestamp } = (await status()).windows.at(-1), from = Date.parse(timestamp) / 1000;
  // As the browser writes it: without the seconds, if they are 0.
  const local = time => time.replace("Z", "").replace(/(T..:..):00$/, "$1");
  await field("From").fill(local(timestamp));
  await field("To").fill(local(at(from + 1)));
  await page.keyboard.press("Enter");
  await says(page, "#range-note", new RegExp(`^from ${timestamp.slice(0, 10)} ${timestamp.slice(11, 19)} to .*(exact|95 %: .*) · `));

  // Refused: the end is before the beginning.
  await field("To").fill("2020-01-01T00:00");
  await page.getByRole("button", { name: "Count" }).click();
  await says(page, "#range-note", /^To is not after from\.$/);
  assert.ok(!(await page.isVisible("#range-count")));
  await assertUsable(page, "refused range");
  const last = asked.filter(request => request.includes("/api/verve/unique?")).at(-1);
  assert.ok(last.endsWith(`to=${encodeURIComponent("2020-01-01T00:00:00.000Z")}`), last);
  // An answer that comes late does not replace that to a later question.
  let release, held = new Promise(resolve => release = resolve);
  await page.route(/unique\?/, async route => {
    await held;
    await route.fulfill({ json: { unique_request_count: 77, standard_error: 0, from: timestamp, to: timestamp, complete: true } }).catch(() => {});
  });
  const waits = page.waitForRequest(/unique\?/);
  await page.getByRole("button", { name: "Today" }).click();
  await waits;
  await page.unroute(/unique\?/);
  await page.getByRole("button", { name: "Yesterday" }).click();
  await page.waitForFunction(() => !/To is not after/.test(document.querySelector("#range-note").textContent));
  release();
  await page.waitForTimeout(500);
  assert.notEqual(await text(page, "#range-count"), "77");
  assertQuiet(opened, /400|ERR_ABORTED/);
}

const questionsAsked = (asked, name) => asked.map(request => new URL(request)).filter(({ pathname }) => pathname.endsWith(`/api/verve/${name}`));
const digits = text => Number(text.replaceAll(",", ""));

/** Both circles, and the area that they share, measured in strips: not as the page computes it. */
async function circles(page) {
  const [one, other] = await page.locator("#circles circle").evaluateAll(all => all.map(circle => ["cx", "cy", "r"].map(name => Number(circle.getAttribute(name)))));
  assert.equal(one[1], other[1]);
  const [from, to] = [Math.max(one[0] - one[2], other[0] - other[2]), Math.min(one[0] + one[2], other[0] + other[2])];
  const STRIPS = 100_000, width = Math.max(0, to - from) / STRIPS;
  let shared = 0;
  for (let strip = 0; strip < STRIPS; strip += 1) {
    const x = from + (strip + .5) * width;
    shared += width * 2 * Math.min(...[one, other].map(([cx, , r]) => Math.sqrt(Math.max(0, r ** 2 - (x - cx) ** 2))));
  }
  const [left, top, wide, high] = (await page.getAttribute("#circles", "viewBox")).split(" ").map(Number);
  for (const [cx, cy, r] of [one, other]) {
    assert.ok(cx - r >= left && cx + r <= left + wide && cy - r >= top && cy + r <= top + high, "all of the circles is seen");
  }
  return { areas: [one, other].map(([, , r]) => Math.PI * r ** 2), shared };
}

/** The areas are as the numbers. */
async function assertToScale(page, one, other, both) {
  const { areas, shared } = await circles(page), unit = areas[0] / one;
  assert.ok(Math.abs(areas[1] / unit - other) <= 1e-6 * other, `${areas[1] / unit} and not ${other}`);
  assert.ok(Math.abs(shared / unit - both) < 1e-3 * Math.max(one, other), `${shared / unit} and not ${both}`);
}

/** Two counters of the service, which have a third in common; then answers that are made up, and refusals. */
async function overlaps(browser) {
  const opened = await open(browser), { page, asked } = opened;
  await page.waitForSelector("#overlaps:visible");
  const ids = Array.from({ length: 4_000 }, (_, id) => ({ id, counters: [...(id < 2_000 ? ["a"] : []), ...(id >= 1_000 && id < 3_000 ? ["b"] : []), ...(id >= 3_000 ? ["c"] : [])] }));
  const sending = setInterval(() => send(ids).catch(() => {}), 300);
  // Names to choose from: those of the counters that are listed.
  await page.waitForFunction(() => [...document.querySelectorAll("#names option")].map(({ value }) => value).sort().join() === "a,b,c");
  clearInterval(sending);
  const field = name => page.getByLabel(name, { exact: true });
  for (const name of ["One counter", "Another counter"]) assert.equal(await field(name).getAttribute("list"), "names");
  assert.equal(questionsAsked(asked, "overlap").length, 0, "nobody has asked yet");
  await field("One counter").fill("a");
  await page.selectOption("#overlap-time", "3600");
  assert.equal(questionsAsked(asked, "overlap").length, 0, "the other one is missing");
  await field("Another counter").fill("b");
  const announced = says(page, "#announcement", /^a has [\d,]+ different ids, b has [\d,]+\. In both: /);
  await page.getByRole("button", { name: "Compare" }).click();
  await announced;
  const [question] = questionsAsked(asked, "overlap"), { searchParams } = question;
  assert.deepEqual(searchParams.getAll("counter"), ["a", "b"]);
  const [from, to] = ["from", "to"].map(end => Date.parse(searchParams.get(end)) / 1000);
  assert.ok(from % 3600 === 0 && to === from + 3600 && from <= Date.now() / 1000, question.search);

  const answer = await (await fetch(question)).json(), { counters, union, intersection, intersection_standard_error: error, jaccard } = answer;
  const [one, other] = counters.map(counter => counter.unique_request_count);
  assert.ok(Math.abs(intersection - 1_000) < 5 * error && error > 0, `${intersection} ± ${error}`);
  const shown = async () => ({
    names: [await text(page, "#one-name"), await text(page, "#other-name")],
    numbers: (await Promise.all(["#one-count", "#other-count", "#in-both", "#in-either"].map(id => text(page, id)))).map(text => digits(text.match(/^[\d,]+?(?=95 %|exact| ±|$)/)[0])),
  });
  assert.deepEqual(await shown(), { names: ["a", "b"], numbers: [one, other, intersection, union] });
  const [, shownError, low, high] = (await text(page, "#in-both")).match(/ ± ([\d.,]+)95 %: ([\d,]+) to ([\d,]+)$/).map(digits);
  assert.ok(Math.abs(shownError - error) < .006 * error, `${shownError} and not ${error}`);
  assert.deepEqual([low, high], [Math.ceil(intersection - 2 * error), Math.floor(intersection + 2 * error)]);
  assert.ok(Math.abs(parseFloat(await text(page, "#jaccard")) - 100 * jaccard) < .006);
  assert.match(await text(page, "#overlap-note"), /^from [\d-]+ [\d:]+ to [\d-]+ [\d:]+ UTC · incomplete: not over, or ids may be missing$/);
  await assertToScale(page, one, other, intersection);
  await assertLooks(page, "overlap");

  // Not again until the user asks. Another time is a question.
  await anotherWindow(page);
  await anotherWindow(page);
  assert.equal(questionsAsked(asked, "overlap").length, 1);
  const running = page.waitForRequest(/overlap\?/);
  await page.selectOption("#overlap-time", "");
  assert.equal(new URL((await running).url()).search, "?counter=a&counter=b");

  await assertMadeUpOverlaps(page, answer);

  // Refused.
  await field("Another counter").fill("a");
  await page.keyboard.press("Enter");
  await says(page, "#overlap-note", /^Name two to eight different counters: counter=A&counter=B\.$/);
  assert.ok(!(await page.isVisible("#overlap-found")));
  await assertUsable(page, "refused overlap");
  assertQuiet(opened, /400/);
}

async function assertMadeUpOverlaps(page, real) {
  const markup = "<img src=x onerror='window.ran = true'>";
  const madeUp = (one, other, intersection, error, more = {}) => ({
    ...real, counters: [{ counter: markup, unique_request_count: one }, { counter: LONGEST, unique_request_count: other }],
    union: one + other - intersection, intersection, intersection_standard_error: error, jaccard: intersection / (one + other - intersection), ...more,
  });
  const show = async json => {
    await page.route(/overlap\?/, route => route.fulfill({ json }));
    // The answer is seen by its end.
    const to = json.to.replace("T", " ").replace("Z", "");
    await page.getByRole("button", { name: "Compare" }).click();
    await says(page, "#overlap-note", new RegExp(` to ${to} UTC · ${json.complete ? "complete" : "incomplete"}`));
    await page.unroute(/overlap\?/);
  };
  // Fewer than two standard errors: no fact, neither in the number nor in the picture.
  await show(madeUp(80_000, 20_000, 999, 500, { to: "2026-11-23T05:00:00Z", complete: true }));
  assert.equal(await text(page, "#in-both"), "not distinguishable from none95 %: 0 to 1,999");
  assert.match(await text(page, "#jaccard"), /^–/);
  assert.match(await text(page, "#circles-text"), /In both: not distinguishable from none/);
  await assertToScale(page, 80_000, 20_000, 0);
  assert.equal(await text(page, "#one-name"), markup);
  assert.equal(await page.locator("#overlaps img").count(), 0);
  assert.equal(await page.evaluate(() => window.ran), undefined);
  await assertLooks(page, "no-overlap");
  // As many as two standard errors are a fact.
  await show(madeUp(20_000, 80_000, 1_000, 500, { to: "2026-11-23T06:00:00Z" }));
  assert.equal(await text(page, "#in-both"), "1,000 ± 50095 %: 0 to 2,000");
  await assertToScale(page, 20_000, 80_000, 1_000);
  // One is a part of the other; both are the same; one has none.
  await show(madeUp(1_000_000, 40_000, 40_000, 210, { to: "2026-11-23T07:00:00Z" }));
  await assertToScale(page, 1_000_000, 40_000, 40_000);
  await show(madeUp(5_000, 5_000, 5_000, 12.3, { to: "2026-11-23T08:00:00Z" }));
  await assertToScale(page, 5_000, 5_000, 5_000);
  assert.match(await text(page, "#in-both"), /^5,000 ± 12\.3/);
  assert.match(await text(page, "#jaccard"), /^100%/);
  await show(madeUp(5_000, 0, 0, 0, { to: "2026-11-23T09:00:00Z" }));
  await assertToScale(page, 5_000, 0, 0);
  assert.match(await text(page, "#in-both"), /^0 ± 0exact$/);
}

/** An answer of the service, as it was asked for: a quarter came again at first, then fewer. Of one step nothing is known. */
const FIRST = 100_000, UNKNOWN = 3, INCOMPLETE = 2;
const returnedIn = k => k === UNKNOWN ? 0 : Math.round(FIRST / (4 + k / 3));
function retentionFor(request, unlike = {}) {
  const { searchParams } = new URL(request), step = searchParams.get("step"), number = Number(searchParams.get("steps"));
  const seconds = { hour: 3600, day: DAY }[step], from = Date.parse(searchParams.get("from")) / 1000, counter = searchParams.get("counter");
  const steps = Array.from({ length: number - 1 }, (_, k) => ({
    timestamp: at(from + (k + 1) * seconds), unique_request_count: k === UNKNOWN ? 0 : 90_000 + k, returned: returnedIn(k),
    returned_standard_error: k === UNKNOWN ? FIRST : 900.5, complete: k !== UNKNOWN && k !== INCOMPLETE && k < number - 2,
  }));
  return {
    ...(counter ? { counter } : {}), mode: "hll", standard_error: 0.008125, step, step_seconds: seconds, from: at(from),
    to: at(from + number * seconds), unique_request_count: FIRST, complete: true, steps, ...unlike,
  };
}

/** The share of the ids that came again. The answers are made up, as those of the hours and days are; but the form is that of the service. */
async function returns(browser) {
  const opened = await open(browser), { page, asked } = opened, questions = () => questionsAsked(asked, "retention");
  await page.waitForSelector("#retention:visible");
  await anotherWindow(page);
  assert.equal(questions().length, 0, "nobody has asked yet");
  // The service was just started: of no hour before this one it knows ids.
  // On a busy machine the service may refuse an answer that takes longer than two seconds: then a user asks again.
  const note = page.locator("#retention-note");
  for (const deadline = Date.now() + PATIENCE; ;) {
    await note.evaluate(element => element.textContent = "");
    await page.getByRole("button", { name: "Show" }).click();
    await says(page, "#retention-note", /./);
    if (await note.textContent() !== "The service is busy. Try again.") break;
    assert.ok(Date.now() < deadline, "it stays busy");
  }
  await says(page, "#retention-note", /^No ids in the hour from [\d-]+ [\d:]+ UTC · incomplete: not over, or ids may be missing$/);
  assert.deepEqual(questions().map(({ searchParams }) => searchParams.get("steps")).slice(-5), ["24", "12", "6", "3", "2"]);
  assert.ok(!(await page.isVisible("#returns-all")));
  // The last one is the cheapest.
  const question = questions().at(-1), real = await (await fetch(question)).json(), form = retentionFor(question);
  assert.deepEqual([real, real.steps[0]].map(one => Object.keys(one).sort()), [form, form.steps[0]].map(one => Object.keys(one).sort()));

  await page.route("**/api/verve/retention?*", route => route.fulfill({ json: retentionFor(route.request().url()) }));
  for (const [step, number, counter] of [["hour", 24, ""], ["day", 14, ""], ["hour", 24, "campaign-7"]]) {
    const before = questions().length, began = Date.now();
    if (counter) await page.getByLabel("Counter (empty: all ids)").fill(counter);
    // A change of the step is a question, too.
    if (await page.inputValue("#retention-step") !== step) await page.selectOption("#retention-step", step);
    else await page.getByRole("button", { name: "Show" }).click();
    await says(page, "#retention-note", new RegExp(`^Of 100,000 different ids${counter && ` of ${counter}`} in the ${step} from [\\d-]+ [\\d:]+ UTC · 95 %: 98,375 to 101,625 · complete$`));
    const [{ searchParams }, ...others] = questions().slice(before), seconds = { hour: 3600, day: DAY }[step];
    assert.deepEqual([others.length, searchParams.get("step"), searchParams.get("steps"), searchParams.get("counter")], [0, step, String(number), counter || null]);
    const from = Date.parse(searchParams.get("from")) / 1000;
    // The last step is the running one, as the page knew it some seconds ago at most.
    const running = [began - 10_000, Date.now()].map(time => Math.floor(time / 1000 / seconds) * seconds);
    assert.ok(running.includes(from + (number - 1) * seconds), searchParams.get("from"));
    await assertCurve(page, number - 1);
    const [newest] = await page.locator("#returns-rows tr").allTextContents();
    assert.match(newest, new RegExp(`${whole(returnedIn(number - 2))} ± 901${whole(90_000 + number - 2)}no$`));
  }
  await page.focus("#returns");
  await page.keyboard.press("ArrowLeft");
  assert.match(await text(page, "#returns-reading"), /: [\d.]+%, [\d,]+ of 100,000 \(95 %: [\d.]+% to [\d.]+%\), incomplete$/);
  assert.match(await text(page, "#returns-text"), /^22 hours from .* to .*: from [\d.]+% to 25% of the ids of the first step came again, [\d.]+% in the last\./);
  await assertLooks(page, "retention");
  // Not again until the user asks.
  const before = questions().length;
  await anotherWindow(page);
  await anotherWindow(page);
  assert.equal(questions().length, before);
  await page.unroute("**/api/verve/retention?*");

  await assertRefusedReturns(page, questions);
  assertQuiet(opened, /400|503/);
}

const whole = number => number.toLocaleString("en-GB");

/** Each mark is where the labels of the axis say, and so is the band of two standard errors. */
async function assertCurve(page, steps) {
  const known = Array.from({ length: steps }, (_, k) => k).filter(k => k !== UNKNOWN);
  await page.waitForFunction(marks => document.querySelectorAll("#returns .mark").length === marks, known.length);
  const drawn = await page.evaluate(() => {
    const all = name => [...document.querySelectorAll(`#returns ${name}`)], number = (one, name) => Number(one.getAttribute(name));
    return {
      marks: all(".mark").map(mark => ({ x: number(mark, "cx"), y: number(mark, "cy"), complete: mark.dataset.complete })),
      lines: all(".grid").map(line => number(line, "y1")),
      labels: all("text").map(text => text.textContent).filter(text => /^[\d.]+%$/.test(text)).map(parseFloat),
      bands: all(".band").map(band => band.getAttribute("points").split(" ").map(point => point.split(",").map(Number))),
    };
  });
  assert.equal(drawn.labels.length, drawn.lines.length);
  const [bottom, top] = [drawn.lines[0], drawn.lines.at(-1)], [least, most] = [drawn.labels[0], drawn.labels.at(-1)];
  const near = (y, count) => {
    const share = least + (y - bottom) / (top - bottom) * (most - least);
    assert.ok(Math.abs(share - 100 * count / FIRST) < .01, `${share} % and not ${count}`);
  };
  known.forEach((k, index) => near(drawn.marks[index].y, returnedIn(k)));
  assert.ok(drawn.marks.every(({ x }, index) => index === 0 || x > drawn.marks[index - 1].x));
  assert.deepEqual(known.filter((_, index) => drawn.marks[index].complete === "false"), [INCOMPLETE, steps - 1]);
  // A gap where nothing is known. The lower edge goes back.
  assert.deepEqual(drawn.bands.map(band => band.length / 2), [UNKNOWN, steps - UNKNOWN - 1]);
  const [upper, lower] = [band => band.slice(0, band.length / 2), band => band.slice(band.length / 2).reverse()].map(half => drawn.bands.flatMap(half));
  known.forEach((k, index) => {
    near(upper[index][1], returnedIn(k) + 2 * 900.5);
    near(lower[index][1], returnedIn(k) - 2 * 900.5);
  });
}

async function assertRefusedReturns(page, questions) {
  const routes = "**/api/verve/retention?*", show = () => page.getByRole("button", { name: "Show" }).click();
  // Fewer steps are kept: fewer are shown, and why.
  await page.route(routes, route => retentionFor(route.request().url()).steps.length > 5
    ? refuse(route, "range_not_kept", "nothing is kept of then") : route.fulfill({ json: retentionFor(route.request().url(), { complete: false }) }));
  const before = questions().length;
  await show();
  await says(page, "#retention-fewer", /^These are fewer than 24 hours\. Nothing is kept of then\.$/);
  await says(page, "#retention-note", /^Of 100,000 different ids .* · incomplete: not over, or ids may be missing$/);
  await assertCurve(page, 5);
  assert.equal(questions().length - before, 3);
  await page.unroute(routes);
  // So few that it may be none.
  await page.route(routes, route => {
    const answer = retentionFor(route.request().url());
    return route.fulfill({ json: { ...answer, steps: answer.steps.map(step => ({ ...step, returned: 1_800, returned_standard_error: 900.5 })) } });
  });
  await show();
  await page.waitForSelector("#retention-fewer", { state: "hidden" });
  await page.focus("#returns");
  await page.keyboard.press("ArrowLeft");
  await says(page, "#returns-reading", /: not distinguishable from none \(95 %: 0% to 3\.6%\), incomplete$/);
  await page.unroute(routes);
  // None are kept, or there is nothing to compare.
  for (const [reason, detail, times] of [["range_not_kept", "nothing is kept of it", 5], ["not_available", "name a counter", 1]]) {
    await page.route(routes, route => refuse(route, reason, detail));
    const before = questions().length;
    await show();
    await says(page, "#retention-note", new RegExp(`^${detail[0].toUpperCase()}${detail.slice(1)}\\.$`));
    assert.equal(questions().length - before, times);
    assert.ok(!(await page.isVisible("#returns-all")) && !(await page.isVisible("#retention-fewer")));
    await page.unroute(routes);
  }
  await assertUsable(page, "refused retention");
  // A page that is hidden before the answer asks for no fewer steps.
  await page.route(routes, async route => {
    await page.evaluate(() => Object.defineProperty(document, "hidden", { value: true, configurable: true }));
    await refuse(route, "range_not_kept", "nothing is kept now");
  });
  const asked = questions().length;
  await show();
  await says(page, "#retention-note", /^Nothing is kept now\.$/);
  assert.equal(questions().length - asked, 1);
}

/** Mode exact has neither hours nor ranges: it says so, and asks for none. */
async function exact(browser) {
  const opened = await open(browser), { page, asked } = opened;
  await says(page, "#hours-trouble", /^Mode exact counts no hours\.$/);
  await says(page, "#days-trouble", /^Mode exact counts no days\.$/);
  assert.ok(await page.isVisible("#no-ranges") && !(await page.isVisible("#range")));
  assert.ok(await page.isVisible("#no-overlaps") && !(await page.isVisible("#overlap")));
  assert.ok(await page.isVisible("#no-retentions") && !(await page.isVisible("#retention")));
  assert.deepEqual(["series", "overlap", "retention"].flatMap(name => questionsAsked(asked, name)), []);
  await assertUsable(page, "exact");
  assertQuiet(opened);
}

/** A window that is longer than an hour. */
async function long(browser) {
  const opened = await open(browser), { page, asked } = opened;
  await says(page, "#hours-trouble", /^Windows of 86400 s do not fit into hours\.$/);
  assert.deepEqual(historyAsked(asked).filter(({ searchParams }) => searchParams.get("step") === "hour"), []);
  assertQuiet(opened);
}

/** Behind a load balancer; MORE is how many instances there are. */
async function instances(browser) {
  const [instances] = more, opened = await open(browser), { page } = opened;
  await says(page, "#rate", new RegExp(`^[\\d.]+accepted by ${instances} instances`));
  const { leader } = await status();
  await says(page, "#leader", new RegExp(`^${leader.replace("/", "")}`));
  assertQuiet(opened);
}

/** While Redis is away. */
async function degraded(browser) {
  const opened = await open(browser), { page } = opened;
  await says(page, "#state", /^Degraded/);
  await says(page, "#current-note", /not known/);
  await says(page, "#announcement", /^Degraded/);
  await assertLooks(page, "degraded");
  assertQuiet(opened);
}

/** The service ends, and comes back; MORE is its process id. */
async function away(browser) {
  const opened = await open(browser), { page } = opened;
  await says(page, "#state", /^All well/);
  process.kill(Number(more[0]), "SIGSTOP");
  await says(page, "#state", /^No answer: these are the last/);
  process.kill(Number(more[0]), "SIGCONT");
  await says(page, "#state", /^All well/);
  assertQuiet(opened, /ERR_|Failed to load/);
}

(async () => {
  const checks = { count, chart, access, counters, overflow, failures, history, ranges, overlaps, returns, exact, long, none, instances, degraded, away };
  const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: QUIET });
  try {
    await checks[check](browser);
  } finally {
    await browser.close();
  }
})().catch(error => {
  console.error(error);
  process.exitCode = 1;
});
