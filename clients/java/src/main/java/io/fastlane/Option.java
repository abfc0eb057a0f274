package io.fastlane;

/** What a client may be told beside the address. */
public enum Option {
    /** Turns TLS on. A PEM file of authorities that may sign the server's certificate; "system": this machine's. */
    TLS_CA,
    /** Turns TLS on. A PEM file with the client's own certificate, for a server that requires one. */
    TLS_CERT,
    /** A PEM file with the key of the client's certificate. */
    TLS_KEY,
    /** A token that each call shows, for a server that requires one. */
    TOKEN,
    /** A file with a token, which is read anew for each call. */
    TOKEN_FILE
}
