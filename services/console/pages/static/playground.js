"use strict";
// A conversation with a run's policy. Tokens of services stay in the console: only its own API is asked.
(() => {
  const form = document.getElementById("chat");
  if (!form) return;
  const at = (id) => document.getElementById(id);
  const turns = at("turns");
  let messages = [];
  let image = null;
  let reading = null;

  const add = (kind, ...parts) => {
    const made = document.createElement(kind);
    made.append(...parts);
    return made;
  };
  function bubble(role, text) {
    const body = add("p", text);
    body.className = "text";
    const turn = add("article", add("h3", role), body);
    turn.className = "sample";
    turns.append(turn);
    return body;
  }
  function problem(text) {
    const said = add("p", text);
    said.className = "problem";
    said.setAttribute("role", "alert");
    turns.append(said);
  }
  async function told(answer) {
    try {
      const detail = (await answer.json()).detail;
      return typeof detail === "string" ? detail : detail.map((each) => [...each.loc, each.msg].join(" ")).join("; ");
    } catch { return `the console answered ${answer.status}`; }
  }
  const post = (path, body, signal) => fetch(path, {
    method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" }, signal,
  });
  const how = () => ({ temperature: form.temperature.valueAsNumber || 0, max_tokens: form.max_tokens.valueAsNumber || null });
  const asked = () => ({ run: form.run.value, messages, image });

  form.picture.addEventListener("change", () => {
    const file = form.picture.files[0];
    image = null;
    at("preview").hidden = true;
    if (!file) return;
    const reader = new FileReader();
    reader.onload = () => { image = reader.result; at("preview").src = image; at("preview").hidden = false; };
    reader.readAsDataURL(file);
  });

  // One event: its name, and its data as JSON.
  function parse(block) {
    const lines = block.split("\n");
    const data = lines.filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("");
    return [(lines.find((line) => line.startsWith("event: ")) || "").slice(7), data ? JSON.parse(data) : {}];
  }

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (reading) return;
    const question = form.question.value;
    messages.push({ role: "user", content: question });
    bubble("You", question);
    form.question.value = "";
    at("judge").hidden = true;
    at("said").replaceChildren();
    at("ask").disabled = true;
    at("stop").hidden = false;
    reading = new AbortController();
    let text = "";
    let ended = false;
    let body = null;
    try {
      const answer = await post("/api/v1/chat", {
        ...asked(), ...how(),
      }, reading.signal);
      if (!answer.ok) throw new Error(await told(answer));
      body = bubble(form.run.value, "");
      const stream = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { value, done } = await stream.read();
        if (done) break;
        const blocks = (rest + value).split("\n\n");
        rest = blocks.pop();
        for (const [name, data] of blocks.map(parse)) {
          if (name === "text") { text += data.text; body.textContent = text; }
          if (name === "problem") problem(`${data.status}: ${data.detail}`);
          if (name === "end") {
            ended = true;
            const told = add("p", `version ${data.version ?? "unknown"}${data.finish_reason === "length" ? ", cut off" : ""}`);
            told.className = "dim";
            turns.append(told);
          }
        }
      }
    } catch (error) {
      problem(error.name === "AbortError" ? "Stopped." : error.message);
    }
    reading = null;
    at("ask").disabled = false;
    at("stop").hidden = true;
    if (ended) {
      messages.push({ role: "assistant", content: text });
      at("judge").hidden = false;
    } else {
      messages.pop(); // so that the question can be asked again
      form.question.value = question;
    }
  });
  at("stop").addEventListener("click", () => reading && reading.abort());
  at("anew").addEventListener("click", () => {
    if (reading) reading.abort();
    messages = [];
    turns.replaceChildren();
    at("said").replaceChildren();
    at("judge").hidden = true;
  });

  at("both").addEventListener("click", async () => {
    if (!form.reportValidity()) return;
    at("both").disabled = true;
    at("both-said").replaceChildren("Both are answering …");
    try {
      const answer = await post("/api/v1/votes/ask", {
        runs: [form.run.value, at("other").value], question: form.question.value, image, ...how(),
      });
      if (!answer.ok) throw new Error(await told(answer));
      location.assign(`/votes/${(await answer.json()).id}`);
    } catch (error) { at("both-said").replaceChildren(error.message); }
    at("both").disabled = false;
  });

  async function judge(path, body, show) {
    at("said").replaceChildren(add("span", "…"));
    try {
      const answer = await post(path, body);
      at("said").replaceChildren(...(answer.ok ? show(await answer.json()) : [add("span", await told(answer))]));
    } catch (error) { at("said").replaceChildren(add("span", error.message)); }
  }
  function tag(text, title) {
    const made = add("span", text);
    made.className = "tag";
    made.title = title || "";
    return made;
  }
  at("score").addEventListener("click", () => judge("/api/v1/score", {
    ...asked(), messages: messages.slice(0, -1), response: messages.at(-1).content, section: at("whole").checked ? "all" : "own",
  }, (given) => given.map((one) => tag(
    one.score === null ? `${one.expert}: ${one.status}` : `${one.expert} ${one.score.toFixed(3)}, version ${one.version}`, one.detail))));
  at("grade").addEventListener("click", () => judge("/api/v1/grade", {
    run: form.run.value, response: messages.at(-1).content, gold: at("gold").value,
  }, (one) => [tag(one.accuracy === null ? one.status : one.accuracy >= 1 ? "right" : "wrong", one.detail),
    ...(one.reward === null ? [] : [tag(`reward ${one.reward.toFixed(3)}`)]), ...(one.extracted ? [tag(`read: ${one.extracted}`)] : [])]));
})();
