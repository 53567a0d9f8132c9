// The page's own script: dresses Gradio's fields (marks, notes, browse), finds them, opens dialogs.
// Gradio moves the data.
(() => {
  const K = window.kohya = { facts: {}, words: {}, state: {}, bridge: {}, values: {} };
  const $ = (selector, root = document) => root.querySelector(selector);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const tag = (name, className, text = '', more = {}) =>
    Object.assign(document.createElement(name), { className, textContent: text, ...more });
  const word = (text) => K.words[text] ?? text;
  const waiting = {};
  const after = (name, time, work) => { clearTimeout(waiting[name]); waiting[name] = setTimeout(work, time); };
  // ---- the page comes packed (lean.py): spread it out before Gradio looks at its configuration
  const ids = (list) => list.flatMap((n, i) => (n < 0 ? Array.from({ length: -n }, (_, k) => list[i - 1] + k + 1) : n));
  const tree = (n) => (Array.isArray(n) ? { id: n[0], children: n.slice(1).map(tree) } : { id: n });
  K.take = ({ words, facts, page, first, language }) => {
    Object.assign(K, { words, language });
    for (const [tab, places] of Object.entries(facts.places)) {
      const known = K.facts[tab] = {};
      for (const [place, numbers] of places) for (const number of numbers) {
        const [key, fact] = facts.about[number < 0 ? -1 - number : number];
        const empty = { label: '', tip: '', unit: '', list: [], old: [], tabs: [] };
        known[key] = { ...empty, first: fact.type === 'box' ? false : '', ...fact, ...place, basic: number >= 0 };
      }
    }
    const config = window.gradio_config ?? {}, lists = page.lists.map(ids), last = localStorage.getItem('kohya-tab');
    const known = new Set(page.parts.map((part) => part[2]));
    config.components = page.parts.map(([id, shape, elem_id, value]) => {
      const [type, props] = structuredClone(page.shapes[shape]), own = { elem_classes: [], buttons: [], ...props };
      if (/-fields$/.test(elem_id)) K.values[elem_id.slice(0, -7)] = value;
      if (/-bench$/.test(elem_id)) K.values[elem_id.slice(0, -6)] = value.start;
      if (elem_id === 'top' && !first && known.has(`top-${last}`)) own.selected = last;
      return { id, type, props: Object.assign(own, elem_id && { elem_id }, value !== undefined && { value }) };
    });
    config.dependencies = page.events.map((each) => ({ ...page.common, ...each, inputs: lists[each.inputs],
      outputs: lists[each.outputs],
      targets: Object.entries(each.targets).flatMap(([name, on]) => ids(on).map((id) => [id, name])) }));
    const every = { includes: () => true }; // there is one page: no need to look each part up in a list
    config.page = { '': { layout: tree(page.layout), components: every, dependencies: every } };
  };
  // ---- talking to Python: one channel per tab, handed over by its gr.HTML
  K.join = (tab, trigger, server) => { K.bridge[tab] = { send: (data) => trigger('click', data), server }; };
  const heard = {}; // tabs that Python has answered: before, the form that this browser kept comes back first
  K.later = (tab) => after(tab, 500, () => { // half a second after the last change
    if (benches.has(tab)) return void K.call(tab, { do: 'look' });
    const kept = !heard[tab] && localStorage.getItem(`kohya-${tab}`);
    $(`#${tab}-${kept ? 'recall' : 'refresh'}`)?.click();
    if (!heard[tab] && !kept) $(`#${tab}-greet`)?.click();
    if (!heard[tab]) after(`${tab}-again`, 4000, () => heard[tab] || K.later(tab)); // Gradio was not ready yet
  });
  K.again = (tab, time) => after(`${tab} again`, time, () => { // only while somebody looks
    if (document.hidden || !$(`#${tab}-plan`)?.offsetParent) K.again(tab, time); else $(`#${tab}-refresh`)?.click();
  });
  K.receive = (tab, state) => {
    if (!state?.t) return;
    heard[tab] = true;
    if (state.fields) { K.state[tab] = state.fields; paint(tab); }
    if (state.looked && K.leaving === tab) after('reload', 500, () => location.reload());
    if (state.sheet) K.sheet(state.sheet.title, state.sheet.html);
    if (state.close) sheet.close();
    if (state.fill) refill(tab, state.fill);
    const place = state.result !== undefined && $(`#${tab}-result`);
    if (place) place.innerHTML = state.result; // made by our own Python
    if (state.follow) after(`${tab} job`, 1000, () => K.call(tab, { do: 'follow', job: state.follow }));
    if (state.top) K.top(state.top);
    if (state.go) K.go(state.form ?? tab, state.go);
    if (state.send) hand(state.send);
    if (state.browse) K.browse(tab, state.browse, '');
    if (state.later) K.later(tab);
    if (state.again) K.again(tab, state.again);
  };
  const hand = async ({ tab, data }) => { // to another tab, which may have to be made first
    K.top(tab);
    for (let tries = 0; tries < 200 && !K.bridge[tab]; tries++) await pause();
    heard[tab] = true; // what comes now is wanted more than the form of last time
    K.bridge[tab]?.send(data);
  };
  // ---- fields: made when their group comes into view; what stands in all of them is one component's value
  const parts = (element) => element.id.split(/-(.*)/s);
  const tabOf = (element) => element.closest('[data-tab]')?.dataset.tab ?? element.dataset.undo
    ?? parts(element.closest('.k-field'))[0];
  const holders = {}, OTHER = '@other';
  K.hold = (tab, props) => {
    const { '@patch': patch, ...given } = props.value ?? {};
    holders[tab] = props;
    refill(tab, patch ? { ...K.values[tab], ...patch } : given);
    if (patch) props.value = K.values[tab];
  };
  const refill = (tab, values) => {
    K.values[tab] = values;
    all(`#${tab}-form .k-field[id^="${tab}-"]`).forEach((element) => show(tab, element));
  };
  const show = (tab, element) => {
    const { k: key } = element.dataset, input = $('.k-in', element);
    const content = K.values[tab]?.[key] ?? K.facts[tab][key].first;
    if (input.type === 'checkbox') { input.checked = content; return; }
    if (input.value === content) return;
    if (input.options && ![...input.options].some((option) => option.value === content)) input.add(new Option(content));
    input.value = content;
  };
  const typed = (element) => {
    const [tab, key] = parts(element), input = $('.k-in', element);
    if (input.value === OTHER) { // none of the choices: a line to type it
      const line = tag('input', 'k-in', '', { id: input.id, value: K.values[tab]?.[key] ?? '' });
      line.setAttribute('aria-describedby', `${element.id}-note`);
      input.replaceWith(line);
      line.select();
      return;
    }
    K.values[tab] = { ...K.values[tab], [key]: input.type === 'checkbox' ? input.checked : input.value };
    if (holders[tab]) holders[tab].value = K.values[tab];
    K.later(tab);
  };
  // a tool: its fields and buttons are one piece of HTML, and what it asks goes past Gradio's events
  const benches = new Set(), turns = {};
  K.bench = (tab, element, { html }) => {
    benches.add(tab);
    element.innerHTML = html; // made by our own Python
    const ask = (what) => (request) => K.bridge.utilities.server[what]({ ...request, form: tab });
    K.bridge[tab] = { send: (data) => K.call(tab, data), server: { browse: ask('browse'), complete: ask('complete') } };
    fields($('.k-place', element), tab, 0);
  };
  K.call = async (tab, data) => {
    const button = $(`#${tab}-${data.do}`);
    while (!K.bridge.utilities) await pause();
    if (button) button.disabled = true;
    const asked = { ...data, form: tab, contents: K.values[tab] };
    const clicked = /^(start|dry|undo)$/.test(data.do), stop = () => {};
    if (clicked) { // its answer stays: no look at the fields and no job that goes on takes its place
      turns[tab] = (turns[tab] ?? 0) + 1;
      [tab, `${tab} job`].forEach((name) => after(name, 0, stop));
    }
    const turn = turns[tab], quiet = /^(look|follow)$/.test(data.do);
    const answer = await K.bridge.utilities.server.act(asked).catch(() => null); // the page may have gone away
    if (button) button.disabled = false;
    if (!quiet || turn === turns[tab]) K.receive(answer?.form ?? tab, answer);
  };
  K.grid = (element) => fields(element, ...element.closest('.block').id.split('-grid-'));
  const fields = (element, tab, number) => {
    const grid = tag('div', 'k-grid');
    const here = Object.entries(K.facts[tab]).filter(([, fact]) => fact.grid === Number(number));
    grid.append(...here.map(([key, fact]) => make(tab, key, fact)), tag('div', 'k-more'));
    element.replaceChildren(grid);
    after(`mark-${tab}`, 0, () => mark(tab));
  };
  const make = (tab, key, fact) => {
    const id = `${tab}-${key}`, box = fact.type === 'box';
    const names = { 'k-path': fact.kind, 'k-wide': fact.wide, 'k-basic': fact.basic, 'k-box': box };
    const element = tag('div', ['k-field', ...Object.keys(names).filter((name) => names[name])].join(' '), '', { id });
    element.dataset.k = key;
    const label = tag('label', 'k-label', fact.label, { htmlFor: `${id}-in`, title: fact.tip });
    label.dataset.unit = fact.unit;
    const input = tag({ choice: 'select', long: 'textarea' }[fact.type] ?? 'input', 'k-in', '', { id: `${id}-in` });
    const options = fact.list.map((value) => new Option(fact.called?.[value] || value || word('not set'), value));
    const other = fact.custom ? [new Option(word('another …'), OTHER)] : [];
    if (fact.type === 'choice') input.append(...options, ...other);
    else Object.assign(input, { autocomplete: 'off', spellcheck: false, placeholder: box ? '' : fact.first });
    if (input.type === 'text') input.type = { box: 'checkbox', secret: 'password' }[fact.type] ?? 'text';
    input.setAttribute('aria-describedby', `${id}-note`);
    const reset = tag('button', 'k-reset', '', { type: 'button', title: word('Undo this change') });
    reset.setAttribute('aria-label', `${fact.label}: ${reset.title}`);
    reset.dataset.reset = key;
    element.append(...(box ? [input, label] : [label, input]));
    if (fact.kind || (options.length && fact.type !== 'choice')) {
      const list = tag('datalist', '', '', { id: `${id}-list` });
      list.append(...options);
      input.setAttribute('list', list.id);
      element.append(list);
    }
    if (fact.kind) {
      const browse = tag('button', 'k-browse', word('Browse'), { type: 'button' });
      browse.setAttribute('aria-label', `${word('Browse')}: ${fact.label}`);
      browse.dataset.browse = key;
      element.append(browse);
    }
    element.append(reset, tag('div', 'k-note', '', { id: `${id}-note` }));
    show(tab, element);
    paintField(tab, element, key);
    return element;
  };
  const paintField = (tab, element, key) => {
    const { changed = {}, off = {}, notes = {} } = K.state[tab] ?? {};
    const said = key in off ? { say: 'off', text: off[key] } : notes[key];
    const looks = JSON.stringify([changed[key], said]);
    if (element.looks === looks) return; // only what differs is touched
    element.looks = looks;
    const note = $('.k-note', element), input = $('.k-in', element);
    element.toggleAttribute('data-changed', key in changed);
    element.toggleAttribute('data-off', key in off);
    element.dataset.say = said?.say ?? '';
    $('.k-reset', element).textContent = changed[key] ?? '';
    input.disabled = key in off;
    input.setAttribute('aria-invalid', said?.say === 'error');
    note.textContent = said?.text ?? '';
    if (!said?.set) return;
    const fix = tag('button', 'k-link', said.set.label);
    fix.dataset.set = JSON.stringify(said.set.values);
    note.append(' ', fix);
  };
  const paintMore = (tab, grid) => { // the line under a group: fields that do not apply, ways back
    const fields = all('.k-field', grid), count = (what) => fields.filter((field) => field.matches(what)).length;
    const link = (text, n, data) => n
      && tag('button', 'k-link', word(text).replace('{n}', n), { type: 'button', data });
    const said = [
      link('{n} more appear with other choices', count('[data-off]'), { more: '' }),
      link('Undo {n} changes here', count('[data-changed]'), { undo: tab, to: 'file' }),
      link('Defaults for these {n}', grid.closest('.k-group') && fields.length, { undo: tab, to: 'default' }),
    ].filter(Boolean);
    said.forEach((button) => { Object.assign(button.dataset, button.data); });
    $('.k-more', grid)?.replaceChildren(...said);
  };
  const mark = (tab) => { // the counts are Python's
    const { groups = {}, tabs = {}, views = [] } = K.state[tab] ?? {};
    const set = (element, said) => { if (element) Object.assign(element.dataset, said); };
    for (const [id, said] of Object.entries(groups)) {
      set(document.getElementById(id), said);
      set($(`#${id} > .label-wrap`), { count: said.count });
    }
    for (const [id, said] of Object.entries(tabs)) set(document.getElementById(`${id}-button`), said);
    all(`#${tab}-view label`).forEach((label, number) => set(label, { n: views[number] ?? '' }));
    all(`#${tab}-form .k-grid`).forEach((grid) => paintMore(tab, grid));
  };
  const paint = (tab) => {
    all(`#${tab}-form .k-field[id^="${tab}-"]`).forEach((element) => paintField(tab, element, element.dataset.k));
    mark(tab);
  };
  const NEW = '.k-form:not([data-view]), .k-group:not([data-k]), .k-language:not([data-k])';
  let added = []; // closed tabs and accordions enter the DOM when they are opened; only what is new is looked at
  const welcome = () => {
    const roots = added.filter((root) => root.isConnected);
    const fresh = new Set(roots.flatMap((root) => [...(root.matches(NEW) ? [root] : []), ...all(NEW, root)]));
    added = [];
    for (const element of fresh) {
      const [tab] = parts(element);
      element.dataset.k = '';
      if (element.matches('.k-form')) { K.view(tab, 'basic'); K.later(tab); }
      else if (element.matches('.k-group')) after(`mark-${tab}`, 0, () => mark(tab));
      else document.documentElement.lang = element.value = K.language; // Gradio sets its own
    }
  };
  new MutationObserver((records) => {
    const nodes = records.flatMap((record) => [...record.addedNodes]).filter((node) => node.nodeType === 1);
    if (nodes.length && !added.length) requestAnimationFrame(welcome);
    added.push(...nodes);
  }).observe(document.documentElement, { childList: true, subtree: true });
  // ---- finding a field and going there
  const pause = () => new Promise((next) => setTimeout(next, 50));
  const found = async (selector) => {
    for (let tries = 0; tries < 60 && !$(selector); tries++) await pause();
    return $(selector);
  };
  const unfold = async (group) => { // an accordion that is just being made may close again: look, and click once more
    for (let tries = 0; tries < 40 && !$('[data-testid=accordion-content]', group)?.offsetParent; tries++) {
      if (tries % 8 === 0) $('.label-wrap', group).click();
      await pause();
    }
  };
  K.top = (name) => $(`#top-${name}-button`)?.click();
  K.view = (tab, view) => { const form = $(`#${tab}-form`); if (form) form.dataset.view = String(view).toLowerCase(); };
  K.go = async (tab, key) => {
    const fact = K.facts[tab]?.[key];
    if (!fact) return;
    K.top(fact.top ?? tab);
    const { view } = (await found(`#${fact.top ? 'top' : tab}-form, #${fact.top}-button`))?.dataset ?? {};
    if (view && view !== 'all' && !(fact.basic && view === 'basic')) all(`#${tab}-view input`)[1]?.click();
    for (const id of fact.tabs) (await found(`#${id}-button`))?.click();
    if (fact.group) await unfold(await found(`#${fact.group}`));
    const element = await found(`#${tab}-${key}`);
    if (element?.matches('[data-off]')) element.closest('.k-grid').dataset.all = '';
    element?.scrollIntoView({ block: 'center' });
    $('.k-in', element)?.focus();
  };
  const search = (box) => {
    const [tab] = parts(box), query = $('input, textarea', box).value.trim().toLowerCase().replace(/^--/, '');
    $('.k-results')?.remove();
    if (!query) return;
    const points = (key, { label, tip, old, of = '' }) => {
      const names = [label, key, key.replaceAll('_', ' '), of, ...old].map((name) => name.toLowerCase());
      if (names.includes(query)) return 0;
      if (names.some((name) => name.startsWith(query))) return 1;
      if (names.some((name) => name.includes(query))) return 2;
      return tip.toLowerCase().includes(query) ? 3 : 9;
    };
    const forms = K.facts[tab] ? [tab] : Object.keys(K.facts).filter((name) => name.startsWith('tool_'));
    const known = forms.flatMap((form) => Object.entries(K.facts[form]).map(([key, fact]) => [form, key, fact]));
    const hits = known.filter(([, , fact]) => fact.tip).map(([form, key, fact]) => [points(key, fact), form, key, fact])
      .filter(([score]) => score < 9).sort((a, b) => a[0] - b[0]).slice(0, forms[1] ? 20 : 10);
    const list = tag('div', 'k-results');
    for (const [, form, key, fact] of hits) {
      const row = tag('button', 'k-result', fact.label);
      row.append(tag('small', '', fact.of ?? `--${key}`));
      Object.assign(row.dataset, { go: key, tab: form });
      list.append(row);
    }
    if (!hits.length) list.append(tag('div', 'k-result', word('No field has this name')));
    box.append(list);
  };
  // ---- one dialog for everything: browse, command, report
  const sheet = tag('dialog', 'k-sheet');
  K.sheet = (title, html) => {
    const head = tag('header', ''), close = tag('button', 'k-close', '×'), body = tag('div', 'k-body');
    close.setAttribute('aria-label', word('Close'));
    close.dataset.close = '';
    head.append(tag('h2', '', title), close);
    body.innerHTML = html; // made by our own Python, which escapes every value
    sheet.replaceChildren(head, body);
    if (!sheet.isConnected) document.body.append(sheet);
    if (!sheet.open) sheet.showModal();
  };
  K.browse = async (tab, key, path = null) => {
    const answer = await K.bridge[tab].server.browse({ key, path: path ?? (key[0] === '@' ? '' : $(`#${tab}-${key} input`)?.value || '') });
    K.sheet(answer.title, answer.html);
    Object.assign(sheet.dataset, { tab, key });
  };
  K.act = (event, trigger) => { // a button (or row) inside a gr.HTML that says what to do
    const button = event.target.closest('[data-do]');
    if (!button || (event.target.closest('a') && !button.closest('a'))) return;
    if (!button.dataset.sure || confirm(button.dataset.sure)) trigger('click', { ...button.dataset });
  };
  const complete = (element, value) => after('path', 250, async () => { // paths while typing, from the server
    const [tab, key] = parts(element);
    const names = await K.bridge[tab].server.complete({ path: value, kind: K.facts[tab][key].kind });
    $('datalist', element).replaceChildren(...names.map((name) => new Option(name)));
  });
  const choose = (accept, multiple, take) => { // the browser's own file dialog
    const input = tag('input', '', '', { type: 'file', accept, multiple });
    input.onchange = () => take([...input.files]);
    input.click();
  };
  const upload = async (place, files) => { // one after the other; what was refused is said at the end
    const refused = [], tab = tabOf(place), folder = encodeURIComponent(place.dataset.drop);
    for (const file of files) {
      const address = `kohya/upload?folder=${folder}&name=${encodeURIComponent(file.name)}`;
      const answer = await fetch(address, { method: 'PUT', body: file }).catch((error) => error);
      const said = answer.ok ? (await answer.json()).refused : `${file.name}: ${answer.statusText ?? answer}`;
      if (said) refused.push(said);
    }
    K.later(tab);
    if (!refused.length) return;
    K.sheet(word('{n} added').replace('{n}', files.length - refused.length), '<ul></ul>');
    $('ul', sheet).append(...refused.map((text) => tag('li', '', text)));
  };
  const copy = async (text, button, part) => { // without https there is no clipboard: select the text instead
    if (!navigator.clipboard) return getSelection().selectAllChildren(part);
    await navigator.clipboard.writeText(text);
    button.textContent = word('Copied');
  };
  const bring = async (tab, file) => { // a configuration; of a model only what its header says
    const [small, start] = [file.size <= 8e6, new DataView(await file.slice(0, 8).arrayBuffer())];
    if (!/\.safetensors$/i.test(file.name)) {
      return K.bridge[tab].send({ do: 'open_text', name: file.name, text: small ? await file.text() : null });
    }
    const length = start.byteLength === 8 ? Math.min(Number(start.getBigUint64(0, true)), 8e6) : 0;
    const reader = new FileReader();
    reader.onload = () => K.bridge[tab].send({ do: 'open_header', name: file.name, head: reader.result.split(',')[1] ?? '' });
    reader.readAsDataURL(file.slice(0, 8 + length));
  };
  const ask = (b, what) => { // a button or list of a dialog, with all that was typed there
    const typed = all('[name]', sheet).map((part) => [part.name, part.type === 'checkbox' ? part.checked : part.value]);
    send(b, { ...Object.fromEntries(typed), ...b.dataset, do: what });
  };
  const send = (b, data) => K.bridge[tabOf(b)].send(data);
  const clicks = {
    go: (b) => { $('.k-results')?.remove(); sheet.close(); K.go(b.dataset.tab, b.dataset.go); },
    close: () => sheet.close(),
    reset: (b) => send(b, { do: 'reset', key: b.dataset.reset }),
    more: (b) => b.closest('.k-grid').toggleAttribute('data-all'),
    undo: (b) => {
      const keys = all('.k-field', b.closest('.k-grid')).map((field) => field.dataset.k);
      send(b, { do: 'reset', keys, to: b.dataset.to });
    },
    set: (b) => send(b, { do: 'set', values: JSON.parse(b.dataset.set) }),
    browse: (b) => K.browse(tabOf(b), b.dataset.browse),
    open: (b) => K.browse(sheet.dataset.tab, sheet.dataset.key, b.dataset.open),
    pick: (b) => {
      const file = b.dataset.pick || $('[name=name]', sheet)?.value;
      sheet.close();
      send(sheet, { do: 'pick', key: sheet.dataset.key, file, folder: b.dataset.folder ?? '' });
    },
    upload: () => choose('.json,.toml,.safetensors', false, ([file]) => { sheet.close(); bring(sheet.dataset.tab, file); }),
    ask: (b) => ask(b, b.dataset.ask),
    add: (b) => choose('image/*,.txt,.caption', true, (files) => upload(b.closest('[data-drop]'), files)),
    copy: (b) => {
      const lines = all(b.dataset.copy).map((part) => part.textContent).join('\n').trim().split('\n');
      copy(lines.slice(-(b.dataset.lines ?? 1e6)).join('\n'), b, $(b.dataset.copy));
    },
    theme: () => localStorage.setItem('kohya-theme', document.body.classList.toggle('dark') ? 'dark' : 'light'),
    top: (b) => K.top(b.dataset.top),
    call: (b) => K.call(tabOf(b), { ...b.dataset, do: b.dataset.call }),
  };
  const on = (name, work) => document.addEventListener(name, (event) => work(event, (s) => event.target.closest?.(s)));
  on('click', (event, near) => {
    const name = Object.keys(clicks).find((each) => near(`[data-${each}]`));
    if (name) { event.preventDefault(); clicks[name](near(`[data-${name}]`)); }
    else if (event.isTrusted && !near('.k-search')) $('.k-results')?.remove(); // not by the script's own clicks
    const top = near('#top > .tab-wrapper [role=tab]')?.id.match(/^top-(.*)-button$/)?.[1];
    if (top) localStorage.setItem('kohya-tab', top);
    if (near('[id$=-start]') && window.Notification?.permission === 'default') Notification.requestPermission();
  });
  on('change', (event, near) => {
    if (near('[data-choose]')) ask(near('[data-choose]'), near('[data-choose]').dataset.choose);
    if (!near('.k-language')) return;
    document.cookie = `kohya-language=${event.target.value}; path=${location.pathname}; max-age=31536000; SameSite=Lax`;
    const open = all('.k-form').filter((form) => form.offsetParent).map((form) => parts(form)[0]);
    K.leaving = open[0]; // what was typed comes along: the page is loaded again once it is kept
    open.forEach((tab) => $(`#${tab}-refresh`)?.click());
    after('reload', open.length ? 5000 : 0, () => location.reload());
  });
  on('input', (event, near) => {
    if (near('.k-search')) search(near('.k-search'));
    if (near('[data-filter]')) {
      const wanted = event.target.value.trim().toLowerCase();
      all('[data-row]', near('.k-notes')).forEach((row) => { row.hidden = !`${row.textContent} ${$('th', row)?.title ?? ''}`.toLowerCase().includes(wanted); });
    }
    if (near('.k-cut')) near('.k-compare').style.setProperty('--cut', `${event.target.value}%`);
    if (near('.k-field')) typed(near('.k-field'));
    if (near('.k-path') && /[/\\]/.test(event.target.value)) complete(near('.k-path'), event.target.value);
  });
  const target = (event, near) => event.dataTransfer.types.includes('Files') && near('.k-left');
  const over = (place) => { // where a file would land is marked while it is dragged
    all('[data-over]').forEach((part) => part !== place && delete part.dataset.over);
    if (place) place.dataset.over = '';
  };
  on('dragover', (event, near) => {
    const place = event.dataTransfer.types.includes('Files') && near('[data-drop]') || target(event, near);
    if (place) event.preventDefault();
    over(place);
  });
  on('dragleave', (event) => event.relatedTarget || over()); // out of the window
  on('drop', (event, near) => {
    over();
    const place = near('[data-drop]'), form = target(event, near), [file] = event.dataTransfer.files;
    if (!file || !(place || form)) return;
    event.preventDefault();
    if (form && /\.(json|toml|safetensors)$/i.test(file.name)) return bring(parts($('.k-form', form))[0], file);
    if (!place) return;
    if (place.dataset.drop) upload(place, [...event.dataTransfer.files]);
  });
  on('keydown', (event, near) => {
    if (event.key === 'Enter' && near('.k-search')) {
      event.preventDefault();
      $('.k-search .k-result[data-go]')?.click();
    }
    if (event.key === 'Escape') $('.k-results')?.remove();
    if (event.key === 'Enter' && near('.k-sheet input[name]')) {
      event.preventDefault();
      $('.k-main', near('details, .k-foot, .k-body'))?.click();
    }
    const form = all('.k-form').find((element) => element.offsetParent);
    const button = { s: 'save', Enter: 'start' }[event.key];
    if (!(event.ctrlKey || event.metaKey) || !form || !button || sheet.open) return;
    event.preventDefault();
    $(`#${parts(form)[0]}-${button}`)?.click();
  });
  on('DOMContentLoaded', () => {
    const wanted = localStorage.getItem('kohya-theme');
    const system = matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light';
    document.body.classList.toggle('dark', (wanted ?? system) === 'dark');
  });
  // ---- progress in the tab's title, the badge on Jobs, a notification at the end
  K.progress = (value) => {
    const status = $('[data-title]', new DOMParser().parseFromString(value ?? '', 'text/html'))?.dataset;
    if (!status) return;
    document.title = status.title;
    const button = $('#top-jobs-button');
    if (button) button.dataset.badge = status.running === '0' ? '' : status.running;
    const news = K.ended && status.ended && K.ended !== status.ended;
    if (news && window.Notification?.permission === 'granted') new Notification(status.said);
    K.ended = status.ended || 'none';
  };
  K.follow = () => { if ($('#jobs-follow input')?.checked) $('#k-log')?.scrollTo(0, 1e9); };
})();
