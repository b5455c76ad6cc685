(() => {
  "use strict";
  const images = JSON.parse(document.getElementById("images").textContent);
  const tip = document.getElementById("tip");
  const picture = tip.querySelector("img");
  const [name, truth, more] = ["name", "truth", "more"].map((part) => tip.querySelector("." + part));
  const NEAR = 14; // pixels: radius in which the pointer selects an image
  const STEP = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  let lit = [];

  const hide = () => {
    tip.hidden = true;
    lit.forEach((circle) => circle.classList.remove("on"));
    lit = [];
  };

  const show = (circle) => {
    const image = images[Number(circle.dataset.i)];
    if (lit.includes(circle) && !tip.hidden) return;
    hide();
    lit = Array.from(document.querySelectorAll(`circle[data-i="${circle.dataset.i}"]`));
    lit.forEach((circle) => circle.classList.add("on"));
    if (image.picture) picture.src = image.picture;
    else picture.removeAttribute("src");
    name.textContent = image.name;
    truth.textContent = `true ${image.label}, predicted ${image.predicted}`;
    more.textContent = [image.subset, image.p].filter(Boolean).join(" · ");
    tip.hidden = false;
    const at = circle.getBoundingClientRect();
    const wide = document.documentElement.clientWidth;
    const left = Math.min(Math.max(8, at.left + 18), wide - tip.offsetWidth - 8);
    const below = at.top + 18 + tip.offsetHeight < window.innerHeight;
    tip.style.left = `${left + window.scrollX}px`;
    tip.style.top = `${(below ? at.top + 18 : at.top - tip.offsetHeight - 12) + window.scrollY}px`;
  };

  const nearest = (points, x, y, reach) => {
    let best = null;
    let least = reach;
    for (const point of points) {
      const far = Math.hypot(point.x - x, point.y - y);
      if (far <= least) [best, least] = [point, far];
    }
    return best;
  };

  // The next image in a direction; distance across that direction counts twice.
  const beside = (points, from, [dx, dy]) => {
    let best = null;
    let least = Infinity;
    for (const point of points) {
      const ahead = (point.x - from.x) * dx + (point.y - from.y) * dy;
      const aside = Math.abs((point.x - from.x) * dy) + Math.abs((point.y - from.y) * dx);
      if (point !== from && ahead > 0 && ahead + 2 * aside < least) [best, least] = [point, ahead + 2 * aside];
    }
    return best;
  };

  for (const plane of document.querySelectorAll("svg.plane")) {
    const points = Array.from(plane.querySelectorAll("circle"), (circle) => ({
      circle, x: Number(circle.getAttribute("cx")), y: Number(circle.getAttribute("cy")),
    }));
    if (!points.length) continue;
    const top = plane.viewBox.baseVal.y;
    let current = points[points.length - 1];
    const go = (point) => {
      if (!point) return;
      current = point;
      show(point.circle);
    };
    const at = (event) => {
      const box = plane.getBoundingClientRect();
      const scale = 100 / box.width;
      const [x, y] = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale + top];
      const point = nearest(points, x, y, NEAR * scale);
      if (point) go(point);
      else hide();
    };
    plane.setAttribute("tabindex", "0");
    plane.setAttribute("role", "application");
    plane.setAttribute("aria-roledescription", "map of images");
    plane.addEventListener("pointermove", at);
    plane.addEventListener("pointerdown", at);
    plane.addEventListener("pointerleave", hide);
    plane.addEventListener("focus", () => { if (plane.matches(":focus-visible")) go(current); });
    plane.addEventListener("blur", hide);
    plane.addEventListener("keydown", (event) => {
      if (event.key === "Escape") hide();
      else if (event.key === "Home") go(points[0]);
      else if (event.key === "End") go(points[points.length - 1]);
      else if (STEP[event.key]) go(beside(points, current, STEP[event.key]));
      else return;
      event.preventDefault();
    });
  }

  // Tables wider than the page can also be scrolled by keyboard.
  const reach = () => document.querySelectorAll(".wide").forEach((table) => {
    const name = table.querySelector("caption").textContent;
    for (const [key, value] of [["tabindex", "0"], ["role", "region"], ["aria-label", name]]) {
      if (table.scrollWidth > table.clientWidth) table.setAttribute(key, value);
      else table.removeAttribute(key);
    }
  });
  reach();
  window.addEventListener("resize", reach);

  window.addEventListener("beforeprint", () => {
    hide();
    document.querySelectorAll("details").forEach((element) => { element.open = true; });
  });
})();
