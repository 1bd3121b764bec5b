// What a page can do that Python cannot: take files, give files, hear keys, and remember what was chosen.
window.vlsm = (() => {
  const PIECE_BYTES = 2 ** 20;
  const call = (name, ...values) => window.trame.trigger(name, values);
  let hovered = "axial";

  async function bring(files) {
    const batch = Date.now();
    const bytes = files.reduce((sum, file) => sum + file.size, 0);
    let sent = 0;
    try {
      for (const [number, file] of files.entries()) {
        for (let start = 0; start < Math.max(file.size, 1); start += PIECE_BYTES) {
          const piece = file.slice(start, start + PIECE_BYTES);
          await call("receive", batch, number, file.name, await piece.arrayBuffer());
          sent += piece.size;
          await call("say", `bringing ${file.name}: ${Math.round((100 * sent) / Math.max(bytes, 1))} %`);
        }
      }
    } catch (error) {
      await call("say", "the file did not come whole; try again", true);
      return;
    }
    await call("open", batch);
  }

  function choose() {
    const input = document.createElement("input");
    input.type = "file";
    input.multiple = true;
    input.id = "chooser";
    input.hidden = true;
    input.onchange = () => {
      bring([...input.files]);
      input.remove();
    };
    document.body.append(input);
    input.click();
  }

  async function save(kind) {
    const made = await call("save", kind);
    if (made) window.trame.utils.download(made[0], made[1]);
  }

  // A folder that is dropped gives its files only when it is asked, some at a time.
  async function filesOf(entry) {
    if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
    const reader = entry.createReader();
    const found = [];
    for (;;) {
      const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
      if (!some.length) return found;
      for (const inner of some) found.push(...(await filesOf(inner)));
    }
  }

  window.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  window.addEventListener("dragleave", () => document.body.classList.remove("dropping"));
  window.addEventListener("drop", async (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    const plain = [...event.dataTransfer.files];
    const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
    const files = entries.length ? (await Promise.all(entries.map(filesOf))).flat() : plain;
    if (files.length) bring(files);
  });

  document.addEventListener("mouseover", (event) => {
    const view = event.target.closest(".view");
    if (view && view.dataset.view !== "3-D") hovered = view.dataset.view;
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") call("cancel");
    if (event.key === "Enter" && event.target.id === "prompts") document.getElementById("segment").click();
    if (event.target.closest("input, textarea, [role=slider], [role=combobox], .v-overlay")) return;
    const steps = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 10, PageDown: -10 }[event.key];
    if (steps) {
      event.preventDefault();
      call("move", hovered, steps);
    }
  });

  // A session knows nothing of the ones before; this browser does.
  const REMEMBERED = ["adapter", "recent", "dark"];
  window.addEventListener("pagehide", () => {
    const chosen = REMEMBERED.map((name) => [name, window.trame.state.get(name)]);
    localStorage.setItem("vlsm", JSON.stringify(Object.fromEntries(chosen)));
    navigator.sendBeacon("goodbye");
  });
  call("recall", JSON.parse(localStorage.getItem("vlsm") ?? "{}"));
  return { bring, choose, save };
})();
