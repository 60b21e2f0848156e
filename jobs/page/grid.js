// The image asked with beside the images found. Their pictures are fetched by the browser, when they come into view.
// Everything that a release says goes in as text, never as HTML.
const make = (tag, name, text) => {
  const found = document.createElement(tag);
  if (name) found.className = name;
  if (text !== undefined) found.textContent = text;
  return found;
};

function picture(src, alt) {
  const image = make("img");
  image.loading = "lazy";
  image.decoding = "async";
  image.alt = alt;
  image.src = src;
  return image;
}

function queryPanel(query) {
  const panel = make("section", "query");
  panel.setAttribute("aria-label", "The image asked with");
  const shown = make("div", query.pictures.length > 1 ? "shown several" : "shown");
  for (const src of query.pictures) shown.append(picture(src, query.title));
  const about = make("div", "about");
  about.append(make("h2", "", query.title));
  for (const line of query.lines) about.append(make("p", "", line));
  panel.append(shown, about);
  return panel;
}

function cardOf(card, send) {
  const figure = make("figure", "card");
  figure.dataset.key = card.key;
  const ask = make("button", "picture");
  ask.type = "button";
  ask.title = card.about;
  ask.setAttribute("aria-label", `Ask with ${card.key}`);
  ask.append(picture(card.picture, ""));
  if (card.copies) ask.append(make("span", "copies", `${card.copies + 1} copies`));
  ask.onclick = () => { figure.classList.add("busy"); send("ask", { key: card.key, rank: card.rank }); };
  const line = make("div", "line");
  line.append(make("b", "", card.similarity));
  const marks = make("span", "marks");
  for (const [name, sign, word] of [["right", "✓", "Right"], ["wrong", "✕", "Wrong"]]) {
    const mark = make("button", name, sign);
    mark.type = "button";
    mark.title = `${word}: ${name === "right" ? "more like this" : "not like this"}`;
    mark.setAttribute("aria-label", `${word}: ${card.key}`);
    mark.onclick = () => {
      const now = figure.dataset.mark === name ? "" : name;
      showMark(figure, now);
      send("mark", { key: card.key, mark: now });
    };
    marks.append(mark);
  }
  line.append(marks);
  const caption = make("figcaption");
  caption.append(make("span", "folder", card.folder), make("span", "name", card.name));
  figure.append(ask, line, caption);
  return figure;
}

function showMark(figure, mark) {
  figure.dataset.mark = mark;
  for (const button of figure.querySelectorAll(".marks button")) {
    button.setAttribute("aria-pressed", String(button.className === mark));
  }
}

export default function ({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector(".look");
  const { marks, ...drawn } = data, drawing = JSON.stringify(drawn);
  if (root.drawing !== drawing) {
    const found = make("section", "found");
    found.setAttribute("aria-label", "The images found");
    found.append(...data.cards.map((card) => cardOf(card, setTriggerValue)));
    if (data.none) found.append(make("p", "none", data.none));
    root.replaceChildren(...(data.query ? [queryPanel(data.query)] : []), found);
    const isNew = root.asked !== undefined && root.asked !== data.asked;
    if (isNew && root.getBoundingClientRect().top < 0) root.scrollIntoView({ block: "start" });
    root.asked = data.asked;
    root.drawing = drawing;
  }
  for (const figure of root.querySelectorAll(".card")) {
    figure.classList.remove("busy");
    showMark(figure, marks[figure.dataset.key] ?? "");
  }
}
