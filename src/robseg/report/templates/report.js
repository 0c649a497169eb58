"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const byId = (id) => document.getElementById(id);
  const percent = (value) => (value === null || value === undefined ? "–" : (100 * value).toFixed(1));
  const press = (buttons, isOn) => buttons.forEach((b) => b.setAttribute("aria-pressed", String(isOn(b))));

  // Bars of the classes: the full ones follow the radius.
  const classRadii = all("#class-radii button");
  classRadii.forEach((button) => button.addEventListener("click", () => {
    press(classRadii, (b) => b === button);
    for (const bar of all(".bar")) {
      const worst = data.runs[bar.dataset.run].worst_iou[button.dataset.eps];
      const value = worst ? worst[bar.dataset.class] : null;
      bar.querySelector(".worst").style.width = `${100 * (value ?? 0)}%`;
      bar.querySelector("b").textContent = worst ? `→ ${percent(value)}` : "";
    }
  }));

  if (!data.images.length) return;

  // The viewer. Its state is in the address, as #image=ID&eps=8&attack=NAME.
  const radii = all("#radii button");
  const select = byId("attack");
  const state = { image: 0, eps: radii.find((b) => b.getAttribute("aria-pressed") === "true").dataset.eps, attack: "" };

  function readAddress() {
    const asked = {};
    for (const part of location.hash.slice(1).split("&")) {
      const [key, ...value] = part.split("=");
      try { asked[key] = decodeURIComponent(value.join("=")); } catch { asked[key] = value.join("="); }
    }
    const image = data.images.findIndex((entry) => entry.id === asked.image);
    if (image >= 0) state.image = image;
    const radius = radii.find((b) => asked.eps && Number(b.dataset.eps) === Number(asked.eps));
    if (radius) state.eps = radius.dataset.eps;
    if (image >= 0 || radius) state.attack = (data.all_attacks && asked.attack) || "";
    return image >= 0 || Boolean(radius);
  }

  function writeAddress() {
    const attack = state.attack ? `&attack=${encodeURIComponent(state.attack)}` : "";
    const hash = `#image=${encodeURIComponent(data.images[state.image].id)}&eps=${state.eps}${attack}`;
    history.replaceState(null, "", hash);
  }

  function picture(panel, source, caption, alt, missing) {
    const img = panel.querySelector("img");
    img.hidden = !source;
    if (source) img.src = source; else img.removeAttribute("src");
    img.alt = alt;
    const note = panel.querySelector(".missing");
    note.hidden = Boolean(source);
    note.textContent = missing;
    panel.querySelector("figcaption").textContent = caption;
    panel.querySelector("button").setAttribute("aria-label", `Enlarge: ${alt}`);
  }

  function attacks() {
    const names = data.images[state.image].runs.flatMap((run) => Object.keys(run?.radii[state.eps]?.shown ?? {}));
    return [...new Set(names)];
  }

  function showRun(box, image) {
    const run = image.runs[box.dataset.run];
    const radius = run?.radii[state.eps];
    const attack = state.attack || radius?.chosen_for_miou;
    const at = `${state.eps}/255`;
    const untouched = radius && attack === "clean";
    const shown = untouched
      ? { prediction: run.clean, adversarial: image.original, perturbation: null }
      : radius?.shown[attack] ?? {};
    const under = !radius ? `not evaluated at ${at}` : untouched ? "clean image, which no attack makes worse" : `${attack} at ${at}`;
    const missing = !radius ? "not evaluated" : untouched ? "none" : "not stored";
    const accuracy = untouched ? run.clean_accuracy : radius?.accuracy[attack];
    const right = (value) => (value === null || value === undefined ? "" : `: ${percent(value)}\u00a0% right`);
    const panel = (part) => box.querySelector(`.panel.${part}`);
    picture(panel("clean"), run?.clean, `Prediction, clean${right(run?.clean_accuracy)}`, `Clean prediction for ${image.id}`, "not stored");
    picture(panel("prediction"), shown.prediction, `Prediction, ${under}${right(accuracy)}`, `Prediction for ${image.id}, ${under}`, missing);
    const adversarial = untouched ? "Clean image: no attack makes it worse" : `Adversarial image, ${under}`;
    picture(panel("adversarial"), shown.adversarial, adversarial, `Adversarial image of ${image.id}, ${under}`, missing);
    const factor = data.norm === "l2" ? ", amplified to the full range"
      : Number(state.eps) ? `, amplified × ${Number((127.5 / state.eps).toPrecision(3))}` : "";
    picture(panel("perturbation"), shown.perturbation, `Perturbation${shown.perturbation ? factor : ""}`, `Perturbation of ${image.id}, ${under}`, missing);
  }

  function show() {
    const image = data.images[state.image];
    const names = attacks();
    if (!names.includes(state.attack)) state.attack = "";
    select.replaceChildren(new Option("worst case for mIoU", ""), ...names.map((name) => new Option(name, name)));
    select.value = state.attack;
    byId("attack-choice").hidden = !data.all_attacks || names.length < 2;
    press(radii, (b) => b.dataset.eps === state.eps);
    press(all("#strip button"), (b) => Number(b.dataset.image) === state.image);
    byId("position").textContent = `${state.image + 1} / ${data.images.length}`;
    byId("image-title").textContent = image.id;
    const grid = byId("grid");
    grid.classList.toggle("pixelated", image.small);
    all(".frame", grid).forEach((frame) => { frame.style.aspectRatio = `${image.width} / ${image.height}`; });
    picture(grid.querySelector(".original"), image.original, "Original", `Original of ${image.id}`, "not stored");
    picture(grid.querySelector(".label"), image.label, "Label", `Label of ${image.id}`, "not stored");
    all(".of-run").forEach((box) => showRun(box, image));
    for (const cell of all(".accuracies td")) {
      const run = image.runs[cell.dataset.run];
      const { eps, attack } = cell.dataset;
      const radius = run?.radii[eps];
      cell.textContent = percent(attack === "clean" ? run?.clean_accuracy : radius?.accuracy[attack]);
      cell.classList.toggle("lowest", radius?.chosen_for_aacc === attack);
      cell.classList.toggle("chosen", radius?.chosen_for_miou === attack);
    }
    const entries = all("#legend li, #legend-rest li").sort((a, b) => a.dataset.class - b.dataset.class);
    for (const entry of entries) {
      const present = image.classes.includes(Number(entry.dataset.class));
      if (entry.dataset.class === "255") entry.hidden = !present;
      byId(present || entry.dataset.class === "255" ? "legend" : "legend-rest").append(entry);
    }
    byId("legend-rest").parentElement.hidden = !byId("legend-rest").children.length;
  }

  function change(values) {
    Object.assign(state, values);
    show();
    writeAddress();
  }

  function step(by) {
    change({ image: (state.image + by + data.images.length) % data.images.length });
    byId("strip").children[state.image].scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  data.images.forEach((image, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.image = index;
    button.title = image.id;
    button.setAttribute("aria-label", `Image ${index + 1}: ${image.id}`);
    if (image.original) {
      const img = new Image();
      img.alt = "";
      img.classList.toggle("pixelated", image.small);
      img.src = image.original;
      button.append(img);
    } else {
      button.textContent = image.id;
    }
    button.addEventListener("click", () => change({ image: index }));
    byId("strip").append(button);
  });
  radii.forEach((button) => button.addEventListener("click", () => change({ eps: button.dataset.eps })));
  select.addEventListener("change", () => change({ attack: select.value }));
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  document.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const elsewhere = event.target.closest?.("input, select, textarea, pre, .scroll, dialog");
    if (!by || elsewhere || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    step(by);
  });

  const large = byId("large");
  all(".frame").forEach((frame) => frame.addEventListener("click", () => {
    const img = frame.querySelector("img");
    if (img.hidden) return;
    const copy = large.querySelector("img");
    copy.src = img.src;
    copy.alt = img.alt;
    copy.classList.toggle("pixelated", data.images[state.image].small);
    large.querySelector("p").textContent = `${data.images[state.image].id} – ${frame.nextElementSibling.textContent}`;
    large.showModal();
  }));
  large.addEventListener("click", (event) => { if (event.target === large) large.close(); });

  window.addEventListener("hashchange", () => { if (readAddress()) show(); });
  const linked = readAddress();
  show();
  if (linked) byId("viewer").scrollIntoView();
})();
