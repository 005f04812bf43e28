// What the book's own widgets share; `parts.read_script` puts it before each one's own file.

const ANSWER_MS = 4000; // the kernel is taken for busy or dead after this time

function makeElement(tag, properties = {}, parent = null) {
  const element = Object.assign(document.createElement(tag), properties);
  if (parent) parent.append(element);
  return element;
}

function makeButton(parent, text, title, onClick) {
  const button = makeElement("button", { type: "button", textContent: text, title }, parent);
  button.setAttribute("aria-label", title);
  button.addEventListener("click", onClick);
  return button;
}
