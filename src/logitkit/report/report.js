"use strict";
// Draws every `.plot` from the JSON beside it, in the theme and width of the moment. Which arms are shown and
// which choice is made is read from the pressed state of the buttons in the same figure.
(() => {
  const settings = JSON.parse(document.getElementById("report-settings").textContent);
  const dark = matchMedia("screen and (prefers-color-scheme: dark)");
  const narrow = matchMedia("screen and (max-width: 640px)");
  const finger = matchMedia("(pointer: coarse)");
  const CONFIG = {
    responsive: true,
    displaylogo: false,
    showSendToCloud: false, // nothing leaves this page
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
    displayModeBar: matchMedia("(hover: hover)").matches ? "hover" : false,
  };

  const themed = (key, value) => (dark.matches && typeof value === "string" ? settings.dark[value] ?? value : value);

  function assign(target, path, value) {
    const keys = path.split(".");
    const last = keys.pop();
    for (const key of keys) target = target[key] ??= {};
    target[last] = value;
  }

  function figureOf(plot) {
    const { data, layout } = JSON.parse(plot.nextElementSibling.textContent, themed);
    const meta = layout.meta ?? {};
    const holder = plot.closest("figure");
    if (narrow.matches) for (const [path, value] of Object.entries(meta.narrow ?? {})) assign(layout, path, value);
    if (finger.matches) layout.dragmode = false; // it scrolls the page
    const hidden = new Set([...holder.querySelectorAll('[data-arm][aria-pressed="false"]')].map((b) => +b.dataset.arm));
    const choice = holder.querySelector('[data-choice][aria-pressed="true"]')?.dataset.choice;
    for (const [path, value] of Object.entries(meta.choices?.[choice] ?? {})) assign(layout, path, value);
    for (const trace of data) {
      if (hidden.has(trace.meta?.arm)) trace.visible = false;
      Object.assign(trace, trace.meta?.choices?.[choice]);
    }
    return { data, layout };
  }

  function draw(plot) {
    if (plot.closest("details:not([open])")) return;
    const { data, layout } = figureOf(plot);
    plot.style.minHeight = `${layout.height}px`;
    Plotly.react(plot, data, layout, plot.closest(".card") ? { ...CONFIG, displayModeBar: false } : CONFIG);
  }

  const plots = [...document.querySelectorAll(".plot")];
  const drawAll = () => plots.forEach(draw);

  function press(button, on) {
    button.setAttribute("aria-pressed", String(on));
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    const holder = button?.closest("figure");
    if (!button) return;
    if (button.matches(".copy")) return copy(button);
    if (!holder) return;
    if ("arm" in button.dataset) press(button, button.getAttribute("aria-pressed") !== "true");
    if ("every" in button.dataset)
      holder.querySelectorAll("[data-arm]").forEach((b) => press(b, button.dataset.every === "true"));
    if ("choice" in button.dataset) holder.querySelectorAll("[data-choice]").forEach((b) => press(b, b === button));
    draw(holder.querySelector(".plot"));
  });

  async function copy(button) {
    const code = button.parentElement.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code); // no clipboard here: leave it selected
      button.textContent = "Selected";
    }
    setTimeout(() => (button.textContent = "Copy"), 1600);
  }

  document.addEventListener(
    "toggle",
    (event) => event.target.open && event.target.querySelectorAll(".plot").forEach(draw),
    true,
  );
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((d) => (d.open = true)));
  dark.addEventListener("change", drawAll);
  narrow.addEventListener("change", drawAll);
  drawAll();
})();
