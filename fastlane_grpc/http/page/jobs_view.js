// All jobs, newest first.

import { el, show } from "./dom.js";
import { jobPages } from "./job_pages.js";

export async function jobsView(main, here) {
  const pages = jobPages(here, {});
  here.title("Jobs");
  show(main, el("div", { class: "heading" }, el("h1", {}, "Jobs"), pages.filter), pages.content);
  await pages.run();
}
