"""CSS of the report: system fonts, light and dark mode by the reader's setting."""

STYLE = """
:root{--page:#fbfbfa;--card:#fff;--ink:#1c1d1f;--soft:#62666d;--line:#e4e5e7;--accent:#2563eb;--bar:#dbe7fd}
@media(prefers-color-scheme:dark){:root{--page:#131416;--card:#1b1d20;--ink:#e9eaec;--soft:#9aa0a8;--line:#303338;
--accent:#7aa7ff;--bar:#243a63}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1180px;margin:0 auto;padding:40px 24px 80px}
h1,h2,h3,li{overflow-wrap:anywhere}
th{overflow-wrap:break-word}
h1{font-size:30px;line-height:1.2;letter-spacing:-.02em;margin:0 0 4px}
h2{font-size:20px;letter-spacing:-.01em;margin:52px 0 16px;padding-top:16px;border-top:1px solid var(--line)}
h3{font-size:14px;margin:0;color:var(--soft);font-weight:600}
h3::first-letter{text-transform:uppercase}
h4{font-size:14px;margin:28px 0 8px}
header p,.note,figcaption,.id{color:var(--soft)}
header p{margin:0}
.note{font-size:12.5px;line-height:1.4;margin:12px 0 0}
.cards{display:grid;gap:16px;grid-template-columns:repeat(auto-fit,minmax(240px,1fr))}
article,.chart{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:16px 18px}
.charts:last-child{margin-bottom:0}
.big{font-size:38px;line-height:1.15;font-weight:650;letter-spacing:-.03em;margin:4px 0 10px;
font-variant-numeric:tabular-nums}
.big span{font-size:14px;font-weight:500;letter-spacing:0;color:var(--soft);margin-left:8px}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th{font-weight:400;text-align:left;padding:3px 12px 3px 0}
td{text-align:right;padding:3px 0}
article table{font-size:13.5px}
article tr+tr>*{border-top:1px solid var(--line)}
article th,article thead{color:var(--soft)}
article th{overflow-wrap:anywhere}
small{font-size:11px;opacity:.75}
.charts{display:grid;gap:16px;grid-template-columns:repeat(auto-fill,minmax(min(340px,100%),1fr));margin-bottom:20px}
.chart{margin:0;padding:12px 14px 8px}
.chart svg{display:block;width:100%;height:auto;color:var(--soft);font-family:inherit}
.chart figcaption{color:var(--ink);font-size:14px;font-weight:600;margin-bottom:4px}
details{margin:16px 0}
@media(min-width:800px){.charts details,.charts .broad{grid-column:span 2}}
.charts .whole{grid-column:1/-1}
summary{cursor:pointer;font-weight:600;font-size:14px}
.wide{overflow-x:auto}
.classes{margin-top:4px;font-size:14px}
.classes th,.classes td{padding:4px 14px;border-bottom:1px solid var(--line)}
.classes thead th{color:var(--soft);text-align:right;font-size:13px}
.classes thead th:first-child,.classes tbody th{text-align:left;padding-left:0}
.classes tr:last-child>*{border-bottom:0}
.bar{min-width:110px;background:linear-gradient(var(--bar),var(--bar)) 0 50%/calc(var(--share)*100%) 68% no-repeat}
.lines{display:flex;flex-wrap:wrap;gap:0 12px;font-size:12px;line-height:1.5;margin:0 0 4px;color:var(--soft)}
.lines i{display:inline-block;width:14px;height:3px;border-radius:2px;margin-right:5px;vertical-align:3px}
.lines .dashed{width:6px;outline:2px dotted var(--card)}
.heat th:first-child{position:sticky;left:0;background:var(--card);min-width:6em;max-width:11em}
.heat thead th{min-width:4em;max-width:9em;vertical-align:bottom}
.heat td,.heat th{padding:6px 8px;text-align:center;font-size:13px}
.heat th:first-child{text-align:left}
.heat td{border:2px solid var(--card);border-radius:6px}
.heat td small{display:block}
.heat .together{background:rgb(37 99 235/calc(var(--shade)*.7))}
.heat .apart{background:rgb(220 38 38/calc(var(--shade)*.7))}
.heat .conflict{outline:2px solid rgb(220 38 38)}
.heat .self{background:var(--line)}
.advice{margin:0 0 18px;padding-left:20px}.advice li{margin:4px 0}
.absent{color:var(--soft);opacity:.7}
.example{margin:0 0 18px}
.example p{margin:0 0 4px;font-size:13px}
.id{font-family:ui-monospace,SFMono-Regular,Menlo,monospace;font-size:12px;overflow-wrap:anywhere}
.quality{font-size:12px;font-weight:600;white-space:nowrap}
.tiles{display:grid;gap:8px;grid-template-columns:repeat(3,1fr)}
.labels{display:grid;gap:12px;grid-template-columns:repeat(auto-fill,minmax(min(240px,100%),1fr))}
figure{margin:0}
figcaption{font-size:12.5px;line-height:1.45}
.labels b{color:var(--ink)}
img{display:block;width:100%;height:auto;border-radius:6px;margin-bottom:4px}
.legend{display:flex;flex-wrap:wrap;gap:4px 16px;font-size:13px}
.legend i{display:inline-block;width:12px;height:12px;border-radius:3px;margin-right:6px;vertical-align:-1px}
dl{display:grid;grid-template-columns:max-content 1fr;gap:6px 20px;margin:0}
dt{color:var(--soft)}
dt::first-letter{text-transform:uppercase}
dd{margin:0;overflow-wrap:anywhere;font-family:ui-monospace,SFMono-Regular,Menlo,monospace;font-size:13px}
pre{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:16px;overflow-x:auto;
font:12.5px/1.5 ui-monospace,SFMono-Regular,Menlo,monospace}
@media(max-width:640px){main{padding:24px 16px 60px}.tiles{grid-template-columns:1fr}
dl{grid-template-columns:1fr}dd{margin-bottom:8px}}
"""
