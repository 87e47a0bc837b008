// The reader's choice of light or dark, as mkdocs-material keeps it, on the pages with source files.
let scheme = matchMedia("(prefers-color-scheme: dark)").matches ? "slate" : "default";
try {
  for (const [key, value] of Object.entries(localStorage)) if (key.endsWith(".__palette")) scheme = JSON.parse(value).color.scheme;
} catch { /* no storage: the system's choice */ }
document.documentElement.dataset.scheme = scheme;
