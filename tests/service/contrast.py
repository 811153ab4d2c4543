"""Looks for poor contrast on a page, as WCAG 2 measures it for AA."""

CONTRAST = """() => {
  const parts = (text) => text.match(/[0-9.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = parts(colour).slice(0, 3).map((value) => value / 255)
      .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (one) => {
    for (let at = one; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if ((parts(colour)[3] ?? 1) === 1) return colour;
    }
    return 'rgb(255, 255, 255)';
  };
  const ratio = (one, other) => {
    const [dark, bright] = [light(one), light(other)].sort((a, b) => a - b);
    return (bright + 0.05) / (dark + 0.05);
  };
  document.activeElement.blur();
  const poor = [];
  let looked = 0;
  for (const one of document.querySelectorAll('body *')) {
    if (!one.checkVisibility() || one.closest('.unseen, .skip, noscript')) continue;
    const style = getComputedStyle(one);
    const has = [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (has || one.matches('input, select')) {
      looked += 1;
      const found = ratio(one.namespaceURI.endsWith('svg') ? style.fill : style.color, ground(one));
      if (found < 4.5) poor.push([one.outerHTML.slice(0, 90), found]);
    }
    if (one.matches('input, select, button')) {
      const found = ratio(style.borderTopColor, ground(one.parentElement));
      if (found < 3) poor.push([`border of ${one.outerHTML.slice(0, 80)}`, found]);
    }
    if (one.matches('path.curve')) {
      const found = ratio(style.stroke, ground(one));
      if (found < 3) poor.push([one.outerHTML.slice(0, 90), found]);
    }
  }
  return [poor, looked];
}"""
"""Returns what falls short of 4.5 : 1 for text or 3 : 1 for borders and curves, and how many texts were looked at."""
