// What the page is built of: elements, tables, places for charts.
//
// What comes from the run (names of models and drives, the prompt on the command line) becomes text
// nodes, never HTML: make() sets text only, and charts are given numbers.
'use strict';
const Elements = (() => {
  const ROWS_SHOWN = 500;

  function make(tag, attributes, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, value);
    node.append(...children.filter((child) => child !== null));
    return node;
  }

  // columns: [{name, number, word, of: row → text or node}]; numbers and words aren't broken.
  function table(caption, columns, rows) {
    const kind = (column) =>
        (column.number ? {class: 'number'} : column.word ? {class: 'word'} : {});
    const head = make('tr', {}, ...columns.map((column) =>
        make('th', {scope: 'col', ...kind(column)}, column.name)));
    const shown = rows.slice(0, ROWS_SHOWN);
    const note = rows.length > shown.length ?
        ` (the first ${ROWS_SHOWN} of ${rows.length.toLocaleString('en')})` : '';
    return make('div', {class: 'wide', tabindex: '0', role: 'region', 'aria-label': caption},
        make('table', {}, make('caption', {}, caption + note), make('thead', {}, head),
            make('tbody', {}, ...shown.map((row) => make('tr', {}, ...columns.map((column) =>
                make('td', kind(column), column.of(row))))))));
  }
  // The same figures as the chart above it; made when it is opened.
  function table_behind(caption, columns, rows) {
    const details = make('details', {}, make('summary', {}, `Table: ${caption}`));
    details.addEventListener('toggle', () => {
      if (details.open && details.childElementCount === 1)
        details.append(table(caption, columns, rows()));
    });
    return details;
  }

  function section(title, ...children) {
    const id = title.toLowerCase().replace(/[^a-z]+/g, '-');
    return make('section', {'aria-labelledby': id}, make('h2', {id}, title), ...children);
  }
  function legend(entries) {
    return make('ul', {class: 'legend'}, ...entries.map((entry) => {
      const mark = make('i', {'aria-hidden': 'true'});
      if (entry.line) {
        mark.className = entry.dashed ? 'stroke dashed' : 'stroke';
        mark.style.borderTopColor = Charts.colour(entry.colour);
      } else {
        mark.style.background = Charts.colour(entry.colour);
      }
      return make('li', {}, mark, entry.name);
    }));
  }

  // A chart's place, its legend and what is read out; drawn once it is in the page.
  const waiting = [];
  function chart(label, drawing, {low = false, hint = ''} = {}) {
    const place = make('div', {class: low ? 'chart low' : 'chart', role: 'img', 'aria-label':
        `${label}. The table below has the same figures.`});
    const readout = make('p', {class: 'readout quiet'}, hint);
    waiting.push(() => Charts.draw(place, readout, drawing));
    return make('div', {}, drawing.series.length > 1 ? legend(drawing.series) : null, place,
                readout);
  }
  // To be called when the page holds what was made.
  function draw_charts() {
    for (const draw of waiting.splice(0)) draw();
  }

  return {make, table, table_behind, section, chart, draw_charts};
})();
