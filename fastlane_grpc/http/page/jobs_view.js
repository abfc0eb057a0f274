// All jobs, newest first.

import { show } from "./dom.js";
import { jobPages } from "./job_pages.js";
import { heading } from "./parts.js";

export async function jobsView(main, here) {
  const pages = jobPages(here, {});
  await pages.read();
  here.title("Jobs");
  show(main, heading("Jobs", pages.filter), pages.content);
  await pages.run();
}
