// The report of a plan: speed and p99 against RAM, hits against slots, what needs how much.
'use strict';
(() => {
  const {format} = Charts;
  const {make, table, table_behind, section, chart} = Elements;
  // By number of drives; a fifth begins again.
  const COLOURS = ['blue', 'orange', 'green', 'purple'];
  const GIB = 2 ** 30;

  const gib = (bytes) => `${format(bytes / GIB)} GiB`;
  const gb = (bytes) => `${format(bytes / 1e9)} GB`;
  const percent = (share) => `${format(100 * share)} %`;
  const billions = (count) => `${format(count / 1e9)} B`;
  const drives_text = (n) => `${n} drive${n === 1 ? '' : 's'}`;

  function cards(plan) {
    return Frame.cards([
      ['parameters', billions(plan.total_params)],
      ['active per token', billions(plan.active_params)],
      ['weights', gb(plan.weights_bytes[plan.quant])],
      ['of them experts', gb(plan.experts_bytes)],
      ['KV per token', `${format(plan.kv_bytes_per_token / 1024)} KiB`],
      ['least RAM', gib(plan.floor_ram_bytes)],
    ]);
  }

  const ram_axis = (sizes) => {
    const logs = sizes.map((bytes) => Math.log10(bytes / GIB));
    const aside = Math.max(0.03 * (logs[logs.length - 1] - logs[0]), 0.02);
    return {x_ticks: Charts.log_ticks, xlabel: 'GiB of RAM',
            dateWindow: [logs[0] - aside, logs[logs.length - 1] + aside]};
  };

  // A line per number of drives over the budgets. entries: [{name, of: cell → number, dashed}].
  function against_ram(cells, label, entries, ylabel) {
    const sizes = [...new Set(cells.map((cell) => cell.ram_bytes))].sort((a, b) => a - b);
    const drives = [...new Set(cells.map((cell) => cell.drives))].sort((a, b) => a - b);
    const cell_of = (bytes, n) =>
        cells.find((cell) => cell.ram_bytes === bytes && cell.drives === n);
    const value = (bytes, n, entry) => {
      const cell = cell_of(bytes, n);
      return cell && cell.decode_tok_s !== null ? entry.of(cell) : null;
    };
    const lines = drives.flatMap((n, i) => entries.map((entry) => ({n, entry, series: {
      name: `${drives_text(n)}${entry.name ? `, ${entry.name}` : ''}`, line: true,
      colour: COLOURS[i % COLOURS.length], dashed: entry.dashed}})));
    const rows = sizes.map((bytes) => [Math.log10(bytes / GIB),
        ...lines.map((line) => value(bytes, line.n, line.entry))]);
    const says = (row) => `${gib(sizes[row])}: ` + lines.map((line, i) =>
        `${line.series.name} ${format(rows[row][i + 1])}`).join(', ') + ` ${ylabel}`;
    return chart(label, {...ram_axis(sizes), series: lines.map((line) => line.series), rows, says,
                         ylabel, drawPoints: true, pointSize: 3});
  }

  function speed(plan) {
    const forecast = plan.cells.filter((cell) => cell.decode_tok_s !== null);
    if (forecast.length === 0)
      return section('Speed against RAM', make('p', {}, plan.machine === null ?
          'No machine is known, so no speed is forecast: `offstage probe` measures one.' :
          'No budget that was asked about is enough.'));
    return section('Speed against RAM',
        make('p', {}, `On ${plan.machine}; calls: ${plan.routing}.`),
        make('div', {class: 'pair'},
            against_ram(plan.cells, 'Tokens per second, by RAM and drives',
                        [{of: (cell) => cell.decode_tok_s}], 'tokens/s'),
            against_ram(plan.cells, 'Time of a token, by RAM and drives',
                        [{name: 'p99', of: (cell) => cell.token_ms.p99},
                         {name: 'p50', of: (cell) => cell.token_ms.p50, dashed: true}], 'ms')),
        cells_table('All that was forecast', plan.cells));
  }

  function cells_table(caption, cells) {
    const number = (name, of) => ({name, number: true, of: (cell) =>
        (cell.decode_tok_s === null ? '–' : format(of(cell)))});
    return table(caption, [
      {name: 'RAM', number: true, of: (cell) => gib(cell.ram_bytes)},
      {name: 'drives', number: true, of: (cell) => String(cell.drives === null ? '–' : cell.drives)},
      {name: 'experts kept', number: true,
       of: (cell) => (cell.fit === 'below_floor' ? 'too little' : percent(cell.kept_share))},
      number('tokens/s', (cell) => cell.decode_tok_s),
      number('± of chance', (cell) => cell.decode_tok_s_error),
      number('of a prompt', (cell) => cell.prefill_tok_s),
      number('p50 ms', (cell) => cell.token_ms.p50),
      number('p95 ms', (cell) => cell.token_ms.p95),
      number('p99 ms', (cell) => cell.token_ms.p99),
      number('max ms', (cell) => cell.token_ms.max),
      number('hits %', (cell) => 100 * cell.hit_rate.ram),
      {name: 'bottleneck', word: true, of: (cell) => cell.bottleneck || '–'},
    ], cells);
  }

  function hits(report) {
    const curve = report.cache_curve;
    if (!curve) return null;
    const {points, experts} = curve;
    const rows = points.map((point) => [point.kept, 100 * point.policy, 100 * point.optimum]);
    const seen = new Set();
    const marks = report.plan.cells
        .filter((cell) => cell.fit === 'from_drive' && !seen.has(cell.ram_bytes) &&
                          seen.add(cell.ram_bytes))
        .map((cell) => ({x: cell.kept_share * experts, text: gib(cell.ram_bytes)}));
    return section('Hits against slots',
        make('p', {}, `Of ${curve.tokens.toLocaleString('en')} tokens’ calls (${curve.routing}), ` +
            `the first ${curve.skipped.toLocaleString('en')} of which fill the cache and don’t ` +
            'count. No policy hits more than the optimum, which knows the future.'),
        chart('Share of calls that hit, by experts kept of every layer', {
          series: [{name: `policy ${curve.policy}`, colour: 'blue', line: true},
                   {name: 'optimum', colour: 'orange', line: true, dashed: true}],
          rows, y_top: 102, xlabel: 'experts kept of every layer', ylabel: '%', drawPoints: true,
          pointSize: 3, xRangePad: 12, underlayCallback: Charts.vertical_marks(marks, {low: true}),
          says: (row) => `${points[row].kept} of ${experts} experts of every layer: ` +
              `${percent(points[row].policy)}, at best ${percent(points[row].optimum)}`,
        }),
        table_behind('hits by slots', [
          {name: 'experts kept of every layer', number: true, of: (point) => String(point.kept)},
          {name: 'bytes', number: true, of: (point) => gib(point.bytes)},
          {name: `hits with ${curve.policy}`, number: true, of: (point) => percent(point.policy)},
          {name: 'at best', number: true, of: (point) => percent(point.optimum)},
        ], () => points));
  }

  function answers(plan) {
    if (!plan.answers) return null;
    return section('What is enough', ...plan.answers.map((answer) => cells_table(
        `${drives_text(answer.drives)}: ${answer.is_enough ? 'enough' : 'not enough, the nearest'}` +
        (answer.price === undefined ? '' : `, costs ${format(answer.price)}`), [answer.cell])));
  }

  function sizes(plan) {
    const quants = Object.keys(plan.weights_bytes);
    const fits = (quant, bytes) => {
      const found = plan.capacity.find((one) => one.quant === quant && one.ram_bytes === bytes);
      return found.fit === 'below_floor' ? 'no' :
             found.fit === 'resident' ? 'all' : percent(found.kept_share);
    };
    const budgets = [...new Set(plan.capacity.map((one) => one.ram_bytes))];
    return section('What it weighs, and how much of its experts stays in RAM',
        table('By recipe', [
          {name: 'recipe', word: true, of: (quant) => quant},
          {name: 'weights', number: true, of: (quant) => gb(plan.weights_bytes[quant])},
          {name: 'bits per weight', number: true,
           of: (quant) => format(plan.bits_per_weight[quant])},
          {name: 'least RAM', number: true, of: (quant) =>
              gib(plan.capacity.find((one) => one.quant === quant).floor_ram_bytes)},
          ...budgets.map((bytes) =>
              ({name: gib(bytes), number: true, of: (quant) => fits(quant, bytes)})),
        ], quants));
  }

  function past(plan) {
    if (plan.past_errors.length === 0) return null;
    const signed = (error) => (error === null ? '–' : `${error < 0 ? '−' : '+'}` +
        `${format(Math.abs(100 * error))} %`);
    return section('Forecasts of past runs on this machine',
        table('With the runs’ own routing; the newest last', [
          {name: 'when', word: true, of: (one) => one.date},
          {name: 'command', word: true, of: (one) => one.command},
          {name: 'model', of: (one) => one.model},
          {name: 'RAM', number: true, of: (one) => gib(one.ram_bytes)},
          {name: 'drives', number: true, of: (one) => String(one.drives)},
          {name: 'tokens', number: true, of: (one) => one.tokens.toLocaleString('en')},
          {name: 'forecast tok/s', number: true, of: (one) => format(one.forecast.decode_tok_s)},
          {name: 'measured', number: true, of: (one) => format(one.measured.decode_tok_s)},
          {name: 'error', number: true, of: (one) => signed(one.error.decode_tok_s)},
          {name: 'of p99', number: true, of: (one) => signed(one.error.p99)},
        ], plan.past_errors));
  }

  Frame.start((report) => {
    const {plan} = report;
    document.getElementById('header').replaceChildren(
        make('h1', {}, `Offstage plan: ${plan.model} as ${plan.quant}`),
        make('p', {class: 'quiet'}, `${report.program}, ${report.made}`));
    Frame.show([cards(plan), speed(plan), answers(plan), hits(report), sizes(plan), past(plan),
                Frame.fallbacks(plan.fallbacks), Frame.command(report, 'The command'), Frame.machine(report)]
        .filter((part) => part !== null));
    return plan.model;
  });
})();
