/**
 * A client of a fastlane server, which runs commands in containers and streams their output.
 *
 * <p>Calls are repeated while the server cannot be reached. A tail never repeats a byte and never drops one in silence.
 */
package io.fastlane;
