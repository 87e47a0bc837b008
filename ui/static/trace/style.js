// The component's own style sheet. It lives in a shadow root: pages cannot break it, and it cannot break them.

export const STYLE = `
:host { display: block; container-type: inline-size; font: 13px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  color: var(--ink); --radius: 10px; text-align: start; }
:host([hidden]) { display: none; }
* { box-sizing: border-box; }
.frame { position: relative; background: var(--bg); border: 1px solid var(--line); border-radius: var(--radius); padding: 14px; }
.frame.dropping { outline: 2px dashed var(--accent); outline-offset: -6px; }
.bar { display: flex; flex-wrap: wrap; align-items: center; gap: 8px; }
.buttons { display: flex; gap: 2px; background: var(--grid); border-radius: 8px; padding: 2px; }
button, select, .file { font: inherit; color: var(--ink); background: transparent; border: 0; border-radius: 6px; min-height: 32px; padding: 0 10px; cursor: pointer; }
.file { display: inline-flex; align-items: center; }
button:hover, .file:hover, select:hover { background: var(--card); }
button:disabled { color: var(--muted); cursor: default; opacity: .6; background: transparent; }
.icon { width: 34px; padding: 0; display: inline-grid; place-items: center; }
.icon svg { width: 16px; height: 16px; fill: currentColor; }
.icon.main { background: var(--accent); color: var(--bg); }
.icon.main:disabled { background: var(--cached); color: var(--bg); opacity: 1; }
.plain { background: var(--grid); border-radius: 8px; }
select { padding-inline: 8px 4px; background: var(--grid); border-radius: 8px; }
select option { background: var(--card); color: var(--ink); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.scrub { flex: 1 1 180px; display: flex; align-items: center; gap: 10px; min-width: 150px; }
input[type=range] { flex: 1; min-width: 60px; accent-color: var(--accent); height: 32px; margin: 0; }
.where { font-variant-numeric: tabular-nums; color: var(--muted); white-space: nowrap; }
.status { display: inline-flex; align-items: center; gap: 6px; color: var(--muted); }
.status:empty { display: none; }
.status::before { content: ""; width: 8px; height: 8px; border-radius: 50%; background: var(--cached); }
.status.live::before { background: var(--good); }
.status.waiting::before, .status.refused::before, .status.problem::before { background: var(--warn); }
.status.problem, .status.refused { color: var(--ink); }
.says { margin: 12px 0 0; font-size: 15px; line-height: 1.4; min-height: 1.4em; text-wrap: pretty; }
.views { display: grid; grid-template-columns: minmax(0, 1fr); gap: 12px; position: relative; }
.view { background: var(--card); border: 1px solid var(--line); border-radius: var(--radius); padding: 10px 12px 12px; min-width: 0; }
.view header { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 2px 12px; margin-bottom: 8px; }
.view h3 { margin: 0; font-size: 13px; font-weight: 600; color: var(--ink); }
.view p { margin: 0; color: var(--muted); font-size: 12px; font-variant-numeric: tabular-nums; }
.view canvas, .view svg { display: block; max-width: none; }
.schedule canvas, .usage canvas { cursor: ew-resize; touch-action: pan-y; }
.rows { overflow-y: auto; overflow-x: hidden; position: relative; border-radius: 6px; scrollbar-width: thin; }
.rows .spacer { position: relative; }
.rows canvas { position: sticky; top: 0; }
.arrows { position: absolute; inset: 0; width: 100%; height: 100%; pointer-events: none; overflow: visible; }
.arrows g path { fill: none; stroke-width: 1.5; opacity: .6; }
.legend { display: flex; flex-wrap: wrap; gap: 6px 16px; margin: 12px 0 0; padding: 0; list-style: none; color: var(--muted); font-size: 12px; }
.legend li { display: inline-flex; align-items: center; gap: 6px; }
.swatch { width: 14px; height: 14px; border-radius: 3px; flex: none; }
.about { color: var(--muted); min-height: 1.45em; margin: 2px 0 10px; text-wrap: pretty; }
.empty { padding: 40px 16px; text-align: center; color: var(--muted); }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
@container (min-width: 860px) {
  .views { grid-template-columns: repeat(12, minmax(0, 1fr)); }
  .view { grid-column: span 12; }
  .blocks { grid-column: span 7; order: -1; } .tables { grid-column: span 5; order: -2; }
  .prefix { grid-column: span 7; } .speculation-view { grid-column: span 5; }
  .alone { grid-column: span 12 !important; }
}
@container (max-width: 519px) {
  .frame { padding: 10px; border-radius: 8px; }
  button, select, .file { min-height: 40px; } .icon { width: 40px; }
  .scrub { flex-basis: 100%; order: 5; }
  .says { font-size: 14px; }
}
`;
