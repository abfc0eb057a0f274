package io.fastlane;

import static io.fastlane.Option.TLS_CA;
import static io.fastlane.Option.TLS_CERT;
import static io.fastlane.Option.TLS_KEY;
import static io.fastlane.Option.TOKEN;
import static io.fastlane.Option.TOKEN_FILE;
import static io.grpc.Metadata.ASCII_STRING_MARSHALLER;
import static io.grpc.Status.Code.UNAUTHENTICATED;

import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ChannelCredentials;
import io.grpc.ClientCall;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannelBuilder;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.TlsChannelCredentials;
import io.grpc.stub.MetadataUtils;
import java.io.File;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Collections;
import java.util.Map;
import java.util.Set;

/** The channel that options ask for: with TLS, with a token in each call. */
record Transport(Map<Option, String> options) {
    private static final Metadata.Key<String> AUTHORIZATION = Metadata.Key.of("authorization", ASCII_STRING_MARSHALLER);

    ManagedChannelBuilder<?> builder(String address) {
        try {
            return Grpc.newChannelBuilder(address, credentials()).intercept(this::withToken);
        } catch (IOException | RuntimeException unusable) {
            throw new FastlaneException(UNAUTHENTICATED, "TLS: " + unusable.getMessage());
        }
    }

    private ChannelCredentials credentials() throws IOException {
        if (Collections.disjoint(options.keySet(), Set.of(TLS_CA, TLS_CERT, TLS_KEY))) {
            return InsecureChannelCredentials.create();
        }
        if (options.containsKey(TLS_CERT) != options.containsKey(TLS_KEY)) {
            throw new IOException("a certificate and its key go together: give both, or neither");
        }
        TlsChannelCredentials.Builder tls = TlsChannelCredentials.newBuilder();
        if (!options.getOrDefault(TLS_CA, "system").equals("system")) {
            tls.trustManager(new File(options.get(TLS_CA)));
        }
        if (options.containsKey(TLS_CERT)) {
            tls.keyManager(new File(options.get(TLS_CERT)), new File(options.get(TLS_KEY)));
        }
        return tls.build();
    }

    private <Q, R> ClientCall<Q, R> withToken(MethodDescriptor<Q, R> method, CallOptions call, Channel channel) {
        String file = options.get(TOKEN_FILE);
        String token = (file == null ? options.getOrDefault(TOKEN, "") : read(file)).strip();
        if (!token.chars().allMatch(each -> each >= ' ' && each <= '~')) {
            throw new FastlaneException(UNAUTHENTICATED, "a token has printable characters of ASCII only");
        }
        Metadata headers = new Metadata();
        if (!token.isEmpty()) {
            headers.put(AUTHORIZATION, "Bearer " + token);
        }
        return MetadataUtils.newAttachHeadersInterceptor(headers).interceptCall(method, call, channel);
    }

    private static String read(String file) {
        try {
            return Files.readString(Path.of(file));
        } catch (IOException unreadable) {
            throw new FastlaneException(UNAUTHENTICATED, "TOKEN_FILE: " + unreadable.getMessage());
        }
    }
}
