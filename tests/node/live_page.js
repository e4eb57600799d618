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
const PATIENCE = 30_000;

/** Opens the page, and takes note of what it asks for and complains about. */
async function open(browser, options = {}) {
  const context = await browser.newContext({ viewport: WIDE, locale: "en-GB", timezoneId: "UTC", ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(PATIENCE);
  const complaints = [], asked = [];
  page.on("console", message => { if (["error", "warning"].includes(message.type())) complaints.push(message.text()); });
  page.on("pageerror", error => complaints.push(String(error)));
  page.on("request", request => asked.push(request.url()));
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

async function send(ids) {
  const answer = await fetch(`${url}api/verve/accept`, {
    method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(ids),
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
  assert.ok(await page.locator("#chart .band").count() > 0, "an error band");
  await says(page, "#current-note", /95 %: [\d,]+ to [\d,]+$/);

  await page.focus("#chart");
  await page.keyboard.press("ArrowLeft");
  await page.keyboard.press("ArrowLeft");
  assert.match(await text(page, "#reading"), /of [\d,]+ accepted/);
  assert.match(await text(page, "#announcement"), /of [\d,]+ accepted/);
  await page.click("summary");
  assert.ok(await page.locator("#rows tr").count() >= 8);
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
  const checks = { count, chart, access, instances, degraded, away };
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
