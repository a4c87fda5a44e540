"use strict";
// One stream of events a page, closed while nobody looks: a browser holds six connections to a host at a time.
(() => {
  const closers = [];
  const openers = [];
  function keep(open) {
    openers.push(open);
    if (!document.hidden) closers.push(open());
  }
  document.addEventListener("visibilitychange", () => {
    while (closers.length) closers.pop()();
    if (!document.hidden) {
      for (const open of openers) closers.push(open());
    }
  });
  window.addEventListener("pagehide", () => { while (closers.length) closers.pop()(); });

  const log = document.getElementById("log");
  const changed = (name) => document.body.dispatchEvent(new CustomEvent(`${name}-changed`));
  if (log) log.scrollTop = log.scrollHeight;
  if (log && log.dataset.stream) {
    let from = log.dataset.stream;
    let over = false;
    keep(() => {
      if (over) return () => {};
      const stream = new EventSource(from);
      stream.addEventListener("log", (event) => {
        const part = JSON.parse(event.data);
        const follows = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
        log.append(part.text);
        while (log.childNodes.length > 2000) log.firstChild.remove();
        from = from.replace(/offset=.*/, `offset=${part.offset}`);
        if (follows) log.scrollTop = log.scrollHeight;
      });
      stream.addEventListener("end", () => { over = true; stream.close(); changed("jobs"); });
      stream.onerror = () => { // it would ask from the beginning again
        stream.close();
        setTimeout(() => { if (!over && !document.hidden) { while (closers.length) closers.pop()(); for (const open of openers) closers.push(open()); } }, 2000);
      };
      const timer = setInterval(() => changed("jobs"), 5000);
      return () => { clearInterval(timer); stream.close(); };
    });
  } else if ("live" in document.body.dataset) {
    keep(() => {
      const stream = new EventSource("/events");
      for (const name of ["jobs", "runs"]) stream.addEventListener(name, () => changed(name));
      return () => stream.close();
    });
  }

  // A sign-in link: its code stands behind the #, which no server sees.
  const signIn = document.getElementById("sign-in");
  if (signIn && location.hash.length > 1) {
    signIn.secret.value = decodeURIComponent(location.hash.slice(1));
    history.replaceState(null, "", location.pathname + location.search);
    signIn.submit();
  }

  // Which keys of a form differ from what it began with.
  const said = document.getElementById("changed-keys");
  const inputs = [...document.querySelectorAll("[data-was]")];
  const mark = () => {
    let count = 0;
    for (const input of inputs) {
      const differs = input.value.trim() !== input.dataset.was.trim();
      input.classList.toggle("changed", differs);
      if (differs && input.name.startsWith("key.")) count += 1;
    }
    if (said) said.textContent = count ? `${count} key${count > 1 ? "s" : ""} changed` : "nothing changed";
  };
  if (inputs.length) { document.addEventListener("input", mark); mark(); }

  // A picture, as large as one wants it.
  document.addEventListener("click", (event) => {
    const picture = event.target.closest("button.zoom");
    if (!picture) return;
    const dialog = document.getElementById("zoom");
    const image = dialog.querySelector("img");
    image.src = picture.querySelector("img").src;
    image.alt = picture.querySelector("img").alt;
    let scale = Math.max(1, Math.floor(Math.min(innerWidth * 0.8 / picture.querySelector("img").naturalWidth, innerHeight * 0.7 / picture.querySelector("img").naturalHeight)));
    const show = () => { image.width = picture.querySelector("img").naturalWidth * scale; };
    dialog.querySelector(".in").onclick = () => { scale *= 1.5; show(); };
    dialog.querySelector(".out").onclick = () => { scale /= 1.5; show(); };
    show();
    dialog.showModal();
  });

  // The strip of tokens, coloured by what is chosen.
  document.addEventListener("change", (event) => {
    if (!event.target.matches("select.paint")) return;
    for (const strip of document.querySelectorAll(".tokens")) {
      for (const token of strip.children) token.className = token.dataset[event.target.value] || "";
    }
  });

  // Keys: / finds, j and k go on and back, g then r, j or v goes to runs, jobs or votes; 1, 2, t and b vote.
  let before = "";
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, textarea, select")) return;
    const find = document.querySelector('[data-key="/"]');
    if (event.key === "/" && find) { event.preventDefault(); find.focus(); }
    const to = { gr: "/runs", gj: "/jobs", gn: "/jobs/new", gv: "/votes" }[before + event.key];
    if (to) location.href = to;
    const link = document.querySelector(`a[data-key="${CSS.escape(event.key)}"]`);
    if (link) location.href = link.href;
    const button = document.querySelector(`button[data-key="${CSS.escape(event.key)}"]`);
    if (button) { event.preventDefault(); button.click(); }
    before = event.key;
  });
})();
