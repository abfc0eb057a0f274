/** A client of fastlane. The messages of the contract are in `fastlane-client/v1`. */
export { type CallOptions, Client, type ClientOptions } from "./client.js";
export { FastlaneError, type Violation } from "./errors.js";
export type { LogEvent, LogMessage } from "./tail.js";
