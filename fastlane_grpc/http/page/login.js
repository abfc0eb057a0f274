// The login: a token, which the server keeps in a cookie that no script can read.

import { Problem, post } from "./api.js";
import { el, show } from "./dom.js";

/** Show a form for a token in place of a view; `opened()` is called once the server has accepted one. */
export function login(main, error, opened) {
  const token = el("input", {
    type: "password", id: "token", name: "token", required: true, autocomplete: "current-password", spellcheck: "false",
  });
  const said = el("p", { role: "alert" }, error.reason === "TOKEN_REQUIRED" ? "" : error.message);
  const button = el("button", { type: "submit" }, "Log in");
  const submit = async (event) => {
    event.preventDefault();
    button.disabled = true;
    try {
      await post("/login", { token: token.value.trim() });
      opened();
    } catch (failure) {
      if (!(failure instanceof Problem)) throw failure;
      said.textContent = failure.message;
      button.disabled = false;
      token.select();
    }
  };
  document.title = "Log in · fastlane";
  show(
    main,
    el("section", { class: "notice" },
      el("h1", {}, "Log in"),
      el("p", {}, "This server requires a token. ", el("code", {}, "fastlane token create"), " on its machine makes one."),
      el("form", { submit, class: "login" },
        el("label", { for: "token" }, "Token"),
        token,
        button,
      ),
      said,
    ),
  );
  token.focus();
}
