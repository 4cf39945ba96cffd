"""The style sheet of the report's page. Knows nothing of what is on it."""

STYLE = """\
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #f5f7f9; color: #1f2933; font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 1rem; }
h2 { font-size: 1.35rem; margin: 2.5rem 0 0.75rem; }
h2 small { font-size: 0.8rem; font-weight: 600; color: #52606d; border: 1px solid #9aa5b1;
  border-radius: 1rem; padding: 0.1rem 0.6rem; margin-left: 0.5rem; vertical-align: middle; }
h3 { font-size: 1rem; margin: 0 0 0.4rem; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(16rem, 1fr)); gap: 0.75rem;
  margin: 0 0 1rem; }
.facts div, figure, .scroll, .findings > div, .same { background: #fff; border: 1px solid #dfe4ea;
  border-radius: 0.5rem; }
.facts div { padding: 0.55rem 0.8rem; }
dt { font-size: 0.8rem; color: #52606d; }
dd { margin: 0; overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: 0.5rem; }
nav a { background: #fff; border: 1px solid #9aa5b1; border-radius: 1rem; padding: 0.15rem 0.8rem;
  color: #0b5394; text-decoration: none; }
nav a:hover, nav a:focus-visible { background: #0b5394; color: #fff; }
.remark { border-left: 4px solid #b7791f; background: #fff8e6; padding: 0.6rem 0.9rem;
  margin: 0.6rem 0; border-radius: 0 0.5rem 0.5rem 0; overflow-wrap: anywhere;
  white-space: pre-line; }
figure { margin: 1rem 0; padding: 0.75rem; }
figcaption, .note { font-size: 0.88rem; color: #52606d; }
figcaption { padding: 0 0.5rem; }
.note { margin: 0.4rem 0 1.5rem; }
.scroll { overflow-x: auto; margin-top: 1rem; }
table { border-collapse: collapse; width: 100%; font-size: 0.9rem;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: 0.6rem 0.8rem; }
th, td { padding: 0.4rem 0.8rem; border-top: 1px solid #e8ecf0; text-align: right;
  white-space: nowrap; }
th:first-child { text-align: left; }
td:last-child { white-space: normal; min-width: 6rem; }
thead th { background: #f0f3f6; font-weight: 600; }
tbody tr:hover { background: #f8fafc; }
.chain { overflow-wrap: anywhere; }
code { background: #eaeef2; border-radius: 0.25rem; padding: 0.05rem 0.3rem; font-size: 0.9em; }
.findings { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 1rem; }
.findings > div, .same { padding: 0.9rem 1.1rem; }
.good { border-top: 4px solid #00805a !important; }
.bad { border-top: 4px solid #c2410c !important; }
.same { margin-top: 1rem; border-top: 4px solid #7b8794 !important; }
.findings ul, .same ul, .method ul { margin: 0; padding-left: 1.2rem; }
li { margin: 0.25rem 0; overflow-wrap: anywhere; }
@media print { body { background: #fff; } section { break-inside: avoid; } }
"""
