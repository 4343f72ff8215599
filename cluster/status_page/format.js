// Numbers for people.

export const bytes = (count) => {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) { count /= 1024; unit += 1; }
  return `${count.toFixed(unit ? 1 : 0)} ${units[unit]}`;
};

/** 0.26, 4.1, 37, 512, 1.2k, 37k: at most four characters. */
export const short = (value) => {
  if (value === 0) return "0";
  if (value < 1) return value.toFixed(2).replace(/^0\.00$/, "0.01").replace(/^1\.00$/, "1");
  for (const unit of ["", "k", "M", "G"]) {
    if (value < 9.95) return `${value.toFixed(1)}${unit}`.replace(".0", "");
    if (value < 999.5) return `${value.toFixed(0)}${unit}`;
    value /= 1000;
  }
  return "many";
};

export const count = (value) => Math.round(value).toLocaleString("en");

export const milliseconds = (seconds) => seconds ? `${(seconds * 1000).toPrecision(2)} ms` : "-";

/** 5 s, 4 min, 3 h, 2 d. */
export const duration = (seconds) => {
  const whole = Math.max(0, Math.floor(seconds));
  if (whole < 120) return `${whole} s`;
  if (whole < 7200) return `${Math.floor(whole / 60)} min`;
  return whole < 172800 ? `${Math.floor(whole / 3600)} h` : `${Math.floor(whole / 86400)} d`;
};

export const clock = (milliseconds) => new Date(milliseconds).toLocaleTimeString("en-GB");

/** 0, 1, 2, 5 -> "0-2, 5" */
export const ranges = (ids) => {
  const parts = [];
  for (const id of [...ids].sort((a, b) => a - b)) {
    const last = parts[parts.length - 1];
    if (last && last[1] === id - 1) last[1] = id; else parts.push([id, id]);
  }
  return parts.map(([from, to]) => from === to ? `${from}` : `${from}-${to}`).join(", ");
};

/** The next of 1, 1.5, 2, 3, 4, 6, 8, 10, 15 ...: a scale that does not jump with every answer. */
export const roundUp = (value) => {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 3, 4, 6, 8, 10].map((step) => step * power).find((step) => step >= value * 0.999999);
};
