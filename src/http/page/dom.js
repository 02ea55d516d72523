// Owns: making and changing parts of the document.
// Promises: a value becomes text or the value of an attribute that the code names, never markup; what has not changed is left
// alone, so that the focus, a selection and what is unfolded stay as they are.

const SVG = "http://www.w3.org/2000/svg";

/** An element. Children are elements, or values, which become text; null, undefined and false are left out. */
export function el(name, attributes, ...children) {
  return fill(document.createElement(name), attributes, children);
}

/** The same in SVG. */
export function svg(name, attributes, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === true) element.setAttribute(name, "");
    else if (value !== undefined && value !== null && value !== false) element.setAttribute(name, String(value));
  }
  element.append(...children.flat(Infinity).filter(isThere).map((child) => (child instanceof Node ? child : String(child))));
  return element;
}

const isThere = (child) => child !== null && child !== undefined && child !== false;

/** Makes the children of `target` like `children`. */
export function render(target, ...children) {
  const wanted = document.createDocumentFragment();
  wanted.append(...children.flat(Infinity).filter(isThere));
  morph(target, wanted);
}

function morph(target, wanted) {
  const [before, after] = [[...target.childNodes], [...wanted.childNodes]];
  after.forEach((node, index) => {
    const old = before[index];
    if (!old) target.append(node);
    else if (old.nodeName !== node.nodeName || old.id !== node.id) old.replaceWith(node);
    else if (node.nodeType === Node.TEXT_NODE) {
      if (old.data !== node.data) old.data = node.data;
    } else {
      attributes(old, node);
      morph(old, node);
    }
  });
  before.slice(after.length).forEach((node) => node.remove());
}

function attributes(old, node) {
  for (const { name, value } of node.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  for (const { name } of [...old.attributes]) {
    // Whether something is unfolded is the reader's choice.
    if (!node.hasAttribute(name) && !(name === "open" && old.nodeName === "DETAILS")) old.removeAttribute(name);
  }
}
