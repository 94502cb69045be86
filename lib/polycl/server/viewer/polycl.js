// What OHIF's MONAI Label mode lacks: a brush, propagation of painted slices, and saving to the server of the page.
//
// Loaded before the viewer, and registered as one of its extensions: `window.config.extensions` is OHIF's own way in,
// and an extension is handed its services. The tools go into the panel of the MONAI Label mode once that is connected.
// Voxels are those of the viewer's label map: columns, rows, slices along the normal, as the server keeps a series.
(() => {
  'use strict';

  // Tells this window from another one behind the same address: the server keeps what a client propagated.
  const CLIENT = `ohif-${Math.random().toString(36).slice(2)}`;
  const TOOLS = { brush: 'CircularBrush', eraser: 'CircularEraser' };
  let services, commands, tools, core;

  window.config.extensions.push({
    id: 'polycl.save',
    preRegistration(managers) {
      services = managers.servicesManager.services;
      commands = managers.commandsManager;
      const libraries = managers.extensionManager.getModuleEntry('@ohif/extension-cornerstone.utilityModule.common');
      ({ cornerstone: core, cornerstoneTools: tools } = libraries.exports.getCornerstoneLibraries());
      core.eventTarget.addEventListener(tools.Enums.Events.TOOL_ACTIVATED, () => setTimeout(showTool));
      core.eventTarget.addEventListener(tools.Enums.Events.SEGMENTATION_DATA_MODIFIED, () => setTimeout(startAtPainted));
      new MutationObserver(mount).observe(document.body, { childList: true, subtree: true });
    },
  });

  // The PACS is only read through the server: what the button in the study list would send is refused.
  for (const { configuration } of window.config.dataSources) configuration.dicomUploadEnabled = false;

  // The panel proposes port 8000, or a server of last time, whatever port the page came from.
  document.cookie = `MONAILABEL_SERVER_URL=${encodeURIComponent(`${location.origin}/`)}`;

  // ---- the label map of the viewport in use

  function current() {
    const service = services.segmentationService;
    const found = service.getActiveSegmentation(services.viewportGridService.getActiveViewportId());
    const segmentation = found ?? service.getSegmentations()[0];
    const volume = segmentation && service.getLabelmapVolume(segmentation.segmentationId);
    if (!volume) throw new Error('there is no segmentation yet: connect to the server first');
    const image = core.cache.getImage(volume.imageIds[0]).referencedImageId;
    const series = core.metaData.get('generalSeriesModule', image).seriesInstanceUID;
    return { id: segmentation.segmentationId, segments: segmentation.segments, volume, series };
  }

  const voxelsOf = map => map.volume.voxelManager.getCompleteScalarDataArray();
  const nameOf = (map, index) => map.segments[index]?.label ?? `label_${index}`;
  const segmentsOf = map => Object.values(map.segments).filter(one => one?.label && one.label !== 'background');

  function show(map, voxels) {
    map.volume.voxelManager.setCompleteScalarDataArray(voxels);
    tools.segmentation.triggerSegmentationEvents.triggerSegmentationDataModified(map.id);
  }

  // ---- NRRD, as far as it is needed here

  async function toNrrd({ volume }, voxels) {
    const [x, y, z] = [0, 3, 6].map((at, axis) =>
      [...volume.direction].slice(at, at + 3).map(part => part * volume.spacing[axis]).join(','));
    const header = [
      'NRRD0004', 'type: uint8', 'dimension: 3', 'space: left-posterior-superior',
      `sizes: ${[...volume.dimensions].join(' ')}`,
      `space directions: (${x}) (${y}) (${z})`, 'kinds: domain domain domain', 'encoding: gzip',
      `space origin: (${[...volume.origin].join(',')})`, '', '',
    ].join('\n');
    const packed = new Blob([voxels]).stream().pipeThrough(new CompressionStream('gzip'));
    return new Blob([header, await new Response(packed).arrayBuffer()]);
  }

  const unpacked = bytes =>
    new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'))).arrayBuffer();

  // The voxels of a label of the server, NRRD or NIfTI, which must be uint8 on the grid of the label map.
  async function fromFile(buffer, { volume }) {
    let bytes = new Uint8Array(buffer);
    let sizes;
    if (new TextDecoder().decode(bytes.subarray(0, 4)) === 'NRRD') {
      const end = bytes.findIndex((byte, at) => byte === 10 && bytes[at + 1] === 10);
      const header = new TextDecoder().decode(bytes.subarray(0, end));
      const field = name => header.match(new RegExp(`^${name}:\\s*(.*)$`, 'm'))?.[1].trim();
      sizes = field('sizes').split(/\s+/).map(Number);
      bytes = bytes.subarray(end + 2);
      if (/^gz/.test(field('encoding'))) bytes = new Uint8Array(await unpacked(bytes));
    } else {
      bytes = new Uint8Array(await unpacked(bytes));
      const header = new DataView(bytes.buffer);
      sizes = [42, 44, 46].map(at => header.getInt16(at, true));
      bytes = bytes.subarray(header.getFloat32(108, true));
    }
    const count = sizes.reduce((product, size) => product * size, 1);
    if (String(sizes) !== String([...volume.dimensions]) || bytes.length !== count) {
      throw new Error('the server sent a label of another size');
    }
    return bytes;
  }

  // ---- the server

  async function ask(path, options) {
    let reply;
    try {
      reply = await fetch(new URL(path, location.origin), options);
    } catch {
      throw new Error('the server cannot be reached; try again when it is up');
    }
    if (reply.ok) return reply;
    const detail = await reply.json().then(answer => answer.detail, () => null);
    throw new Error(typeof detail === 'string' ? detail : `the server answered ${reply.status}`);
  }

  function form(params, label) {
    const data = new FormData();
    data.append('params', JSON.stringify(params));
    data.append('label', label, 'label.nrrd');
    return data;
  }

  async function propagationModel() {
    const { models } = await (await ask('/info/')).json();
    const carries = ({ type, config }) => ['scribbles', 'annotation'].includes(type) && config?.propagates === true;
    return Object.keys(models).find(name => carries(models[name]));
  }

  // The label map as MONAI Label's clients send it, value v the v-th name: the segments that are painted, from 1 on.
  async function sent(map) {
    const voxels = voxelsOf(map);
    const values = new Uint8Array(256);
    for (const value of voxels) values[value] = 1;
    const present = [...values.keys()].filter(value => value && values[value]);
    if (!present.length) throw new Error('nothing is painted yet');
    values[0] = 0;
    present.forEach((value, at) => { values[value] = at + 1; });
    const names = present.map(value => nameOf(map, value));
    const file = await toNrrd(map, voxels.map(value => values[value]));
    return { names, info: names.map((name, at) => ({ name, idx: at + 1 })), file };
  }

  // By series, the version that this window saved or loaded last.
  const versions = {};

  async function save() {
    const map = current();
    const { names, info, file } = await sent(map);
    const query = new URLSearchParams({ image: map.series, tag: 'final' });
    const body = form({ label_info: info }, file);
    const reply = await (await ask(`/datastore/label?${query}`, { method: 'PUT', body })).json();
    const lines = [`Saved ${names.join(', ')} as version ${reply.version}.`, ...(reply.notes ?? [])];
    const before = reply.version - 1;
    if (before && before !== versions[map.series]) lines.push(`Version ${before} was saved elsewhere; it is kept.`);
    versions[map.series] = reply.version;
    return lines.join('\n');
  }

  async function load() {
    const map = current();
    const query = new URLSearchParams({ label: map.series, tag: 'final' });
    const { record } = await (await ask(`/datastore/label/info?${query}`)).json();
    const found = await fromFile(await (await ask(`/datastore/label?${query}`)).arrayBuffer(), map);
    if (voxelsOf(map).some(Boolean) && !window.confirm('This replaces what is painted. Load the saved segmentation?')) {
      return 'Nothing was loaded.';
    }
    const values = new Uint8Array(256);
    for (const [name, value] of Object.entries(record.labels)) values[value] = segmentCalled(name);
    show(map, found.map(value => values[value]));
    versions[map.series] = record.version;
    fillChoice();
    return `Loaded version ${record.version}: ${Object.keys(record.labels).join(', ')}.`;
  }

  function segmentCalled(name) {
    const find = () => segmentsOf(current()).find(segment => segment.label === name);
    if (!find()) services.segmentationService.addSegment(current().id, { label: name });
    return find().segmentIndex;
  }

  async function propagate(model) {
    const map = current();
    const segment = Number(choice().value);
    const name = nameOf(map, segment);
    if (!voxelsOf(map).includes(segment)) throw new Error(`paint ${name} on a slice first`);
    const { info, file } = await sent(map);
    const params = {
      label_info: info, selected_label_name: name, client_id: CLIENT,
      result_extension: '.nrrd', result_dtype: 'uint8', result_compress: false,
    };
    const query = new URLSearchParams({ image: map.series, output: 'image' });
    const body = form(params, file);
    const reply = await ask(`/infer/${encodeURIComponent(model)}?${query}`, { method: 'POST', body });
    const found = await fromFile(await reply.arrayBuffer(), map);
    // What other segments have stays theirs.
    const before = voxelsOf(map);
    const after = before.map((value, at) => (value === 0 || value === segment ? (found[at] ? segment : 0) : value));
    show(map, after);
    const notes = decodeURIComponent(reply.headers.get('X-PolyCL-Notes') ?? '');
    return [`Propagated ${name}: ${changes(map, before, after)}.`, notes].join('\n').trim();
  }

  function changes({ volume }, before, after) {
    const plane = volume.dimensions[0] * volume.dimensions[1];
    const slices = new Set();
    after.forEach((value, at) => { if (value !== before[at]) slices.add(Math.floor(at / plane)); });
    if (!slices.size) return 'nothing changed. Paint a slice, or correct one, and press again';
    return `${slices.size} ${slices.size === 1 ? 'slice' : 'slices'} changed`;
  }

  // Shows the slice that the server would have painted first, in the views that lie along the slices.
  async function suggest() {
    const map = current();
    const query = new URLSearchParams({ image: map.series });
    const { slice } = await (await ask(`/polycl/api/slice?${query}`)).json();
    const [right, front, up] = slice.ras;
    for (const viewport of core.getRenderingEngines()[0].getViewports()) {
      const { viewPlaneNormal } = viewport.getCamera();
      if (Math.abs(viewPlaneNormal[2]) > 0.7) viewport.jumpToWorld([-right, -front, up]);
    }
    return `Slice ${slice.of - slice.number} of ${slice.of}, from the head, is worth most.`;
  }

  // ---- the tools in the panel

  const choice = () => document.getElementById('polycl-segment');
  // Whether the segment shown was chosen, or something is painted: from then on it changes by the reader's hand only.
  let chosen = false;

  const LOOK = `
    #polycl { color: #fff; font-size: 13px; padding: 8px 4px; display: flex; flex-wrap: wrap; gap: 8px; }
    #polycl label { display: flex; gap: 6px; align-items: center; flex: 1 0 100%; }
    #polycl select, #polycl input { flex: 1; min-width: 0; color: #000; }
    #polycl input { appearance: auto; accent-color: #00a4d9; background: none; }
    #polycl button { background: #00a4d9; border-radius: 12px; padding: 4px 12px; }
    #polycl button[aria-pressed=true] { background: #fff; color: #00a4d9; }
    #polycl button:disabled { opacity: 0.5; }
    #polycl :focus-visible { outline: 2px solid #fff; }
    #polycl output { flex: 1 0 100%; min-height: 2.5em; white-space: pre-line; }
    #polycl output.failed { color: #ffb4a9; }`;

  const HTML = `
    <style>${LOOK}</style>
    <button id="polycl-suggest" title="Go to the slice that is most worth painting">Suggested slice</button>
    <label>Segment <select id="polycl-segment"></select></label>
    <button id="polycl-brush" aria-pressed="false">Brush</button>
    <button id="polycl-eraser" aria-pressed="false">Eraser</button>
    <label>Radius, mm <input id="polycl-radius" type="range" min="1" max="50" value="10"></label>
    <button id="polycl-propagate" title="Carry the slices you painted through the volume" hidden>Propagate</button>
    <button id="polycl-save">Save to server</button>
    <button id="polycl-load">Load saved</button>
    <output id="polycl-status" role="status"></output>`;

  function mount() {
    const tabs = document.querySelector('.monaiLabelPanel .tabs');
    if (!tabs || tabs.parentElement.querySelector('#polycl')) return;
    const bar = document.createElement('section');
    bar.id = 'polycl';
    bar.setAttribute('aria-label', 'Paint, propagate and save');
    bar.innerHTML = HTML;
    tabs.before(bar);
    const part = name => bar.querySelector(`#polycl-${name}`);
    for (const event of ['focus', 'pointerdown']) part('segment').addEventListener(event, fillChoice);
    part('segment').addEventListener('change', choose);
    part('radius').addEventListener('input', setRadius);
    for (const name of Object.keys(TOOLS)) part(name).addEventListener('click', () => toggle(name));
    part('suggest').addEventListener('click', () => run('Asking…', suggest));
    part('save').addEventListener('click', () => run('Saving…', save));
    part('load').addEventListener('click', () => run('Loading…', load));
    offerPropagation(part('propagate')).catch(() => {});
    chosen = false;
    fillChoice();
  }

  async function offerPropagation(button) {
    const model = await propagationModel();
    button.hidden = !model;
    button.addEventListener('click', () => run('Propagating…', () => propagate(model)));
  }

  // The segmentation is made a moment after the panel connects, and results may add segments to it.
  function fillChoice() {
    let map;
    try {
      map = current();
    } catch {
      setTimeout(() => choice() && fillChoice(), 500);
      return;
    }
    const before = choice().value;
    const options = segmentsOf(map).map(segment => new Option(segment.label, segment.segmentIndex));
    if (options.length === choice().length) return;
    choice().replaceChildren(...options);
    choice().value = before || String(tools.segmentation.segmentIndex.getActiveSegmentIndex(map.id) ?? 1);
  }

  // The list begins at the first name; the first result moves it to a segment that the result has.
  function startAtPainted() {
    if (chosen || !choice()?.length) return;
    const voxels = voxelsOf(current());
    const painted = voxels.find(Boolean);
    if (!painted) return;
    fillChoice();
    if (!voxels.includes(Number(choice().value))) choice().value = String(painted);
    chosen = true;
  }

  function choose() {
    chosen = true;
    services.segmentationService.setActiveSegment(current().id, Number(choice().value));
  }

  function setRadius() {
    const radius = Number(document.getElementById('polycl-radius').value);
    services.toolGroupService.getToolGroupIds().forEach(group =>
      Object.values(TOOLS).forEach(name =>
        tools.utilities.segmentation.setBrushSizeForToolGroup(group, radius, name)));
  }

  function toggle(name) {
    const on = document.getElementById(`polycl-${name}`).getAttribute('aria-pressed') !== 'true';
    if (on) {
      choose();
      setRadius();
    }
    commands.runCommand('setToolActiveToolbar', { toolName: on ? TOOLS[name] : 'WindowLevel' });
  }

  // Another tool may have been chosen in the viewer's own toolbar.
  function showTool() {
    const group = services.toolGroupService.getToolGroupForViewport(services.viewportGridService.getActiveViewportId());
    for (const [name, tool] of Object.entries(TOOLS)) {
      const button = document.getElementById(`polycl-${name}`);
      button?.setAttribute('aria-pressed', String(group?.getActivePrimaryMouseButtonTool() === tool));
    }
  }

  async function run(doing, work) {
    const status = document.getElementById('polycl-status');
    const buttons = ['suggest', 'propagate', 'save', 'load'].map(name => document.getElementById(`polycl-${name}`));
    buttons.forEach(button => { button.disabled = true; });
    status.className = '';
    status.textContent = doing;
    try {
      status.textContent = await work();
    } catch (error) {
      status.className = 'failed';
      status.textContent = `Not done: ${error.message}`;
    }
    buttons.forEach(button => { button.disabled = false; });
  }
})();
