// A command to try the server with.

import { byId, put } from "./dom.js";

export const showCommand = (model) => {
  const path = model.has_tokenizer ? "/v1/chat/completions" : "/v1/completions";
  const request = model.has_tokenizer
    ? { model: model.name, messages: [{ role: "user", content: "What does str.join do?" }], max_tokens: 64 }
    : { model: model.name, prompt: [1, 2, 3], max_tokens: 8 };
  const text = JSON.stringify(request).replaceAll("'", "'\\''");
  put(byId("curl"), `curl ${location.origin}${path} -H 'Content-Type: application/json' -d '${text}'`);
};

export const enableCopy = () => {
  byId("copy").onclick = () => {
    const range = document.createRange();
    range.selectNodeContents(byId("curl"));
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    // Without a secure origin there is no clipboard; the selection is left for Ctrl-C.
    if (navigator.clipboard) navigator.clipboard.writeText(byId("curl").textContent);
  };
};
