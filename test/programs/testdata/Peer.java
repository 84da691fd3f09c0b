import java.io.IOException;
import java.net.Socket;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.GeneralSecurityException;
import java.security.KeyStore;
import java.security.KeyStoreException;
import java.security.cert.CertificateException;
import java.security.cert.X509Certificate;
import javax.net.ssl.*;

/**
 * A TLS server and client with the key stores of a volume. KEYSTORE and TRUSTSTORE are names of
 * files in the directory. Java detects whether they are PKCS#12 or JKS.
 *
 * <p>java Peer.java server DIRECTORY KEYSTORE TRUSTSTORE PORT<br>
 * java Peer.java client DIRECTORY KEYSTORE TRUSTSTORE PORT SERVER-NAME
 */
public class Peer {
    public static void main(String[] args) throws Exception {
        Path directory = Path.of(args[1]);
        char[] password = Files.readString(directory.resolve("keystore-password")).toCharArray();
        SSLContext context = context(directory, args[2], args[3], password);
        int port = Integer.parseInt(args[4]);
        if (args[0].equals("server")) {
            serve(context, port);
        } else {
            call(context, port, args[5]);
        }
    }

    /** Returns a context that uses the newest key stores for each handshake. */
    static SSLContext context(Path directory, String keystore, String truststore, char[] password)
            throws GeneralSecurityException {
        KeyManagerFactory keys = KeyManagerFactory.getInstance("NewSunX509"); // asks the builder each time
        keys.init(new KeyStoreBuilderParameters(new VolumeStore(directory, keystore, password)));
        TrustManager trust = new VolumeTrust(new VolumeStore(directory, truststore, password));
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(keys.getKeyManagers(), new TrustManager[] {trust}, null);
        context.getServerSessionContext().setSessionTimeout(1); // resumed sessions do not check certificates again
        return context;
    }

    /** A key store of a volume. It is read again when the volume has new files. */
    static class VolumeStore extends KeyStore.Builder {
        private final Path directory;
        private final String name;
        private final char[] password;
        private Path version;
        private KeyStore store;

        VolumeStore(Path directory, String name, char[] password) {
            this.directory = directory;
            this.name = name;
            this.password = password;
        }

        @Override
        public synchronized KeyStore getKeyStore() throws KeyStoreException {
            try {
                Path newest = Files.readSymbolicLink(directory.resolve("..data"));
                if (!newest.equals(version)) {
                    store = KeyStore.getInstance(directory.resolve(newest).resolve(name).toFile(), password);
                    version = newest;
                }
            } catch (IOException | GeneralSecurityException e) {
                if (store == null) {
                    throw new KeyStoreException("read " + directory.resolve(name), e);
                }
                System.err.println("keeping the previous key store: " + e);
            }
            return store;
        }

        @Override
        public KeyStore.ProtectionParameter getProtectionParameter(String alias) {
            return new KeyStore.PasswordProtection(password);
        }
    }

    /** Trusts the roots in a trust store of a volume, as they are now. */
    static class VolumeTrust extends X509ExtendedTrustManager {
        private final KeyStore.Builder builder;
        private KeyStore store;
        private X509ExtendedTrustManager current;

        VolumeTrust(KeyStore.Builder builder) {
            this.builder = builder;
        }

        private synchronized X509ExtendedTrustManager newest() throws CertificateException {
            try {
                KeyStore newest = builder.getKeyStore();
                if (newest != store) {
                    TrustManagerFactory factory = TrustManagerFactory.getInstance("PKIX");
                    factory.init(newest);
                    current = (X509ExtendedTrustManager) factory.getTrustManagers()[0];
                    store = newest;
                }
                return current;
            } catch (GeneralSecurityException e) {
                throw new CertificateException(e);
            }
        }

        @Override
        public void checkClientTrusted(X509Certificate[] chain, String type) throws CertificateException {
            newest().checkClientTrusted(chain, type);
        }

        @Override
        public void checkClientTrusted(X509Certificate[] chain, String type, Socket s) throws CertificateException {
            newest().checkClientTrusted(chain, type, s);
        }

        @Override
        public void checkClientTrusted(X509Certificate[] chain, String type, SSLEngine e) throws CertificateException {
            newest().checkClientTrusted(chain, type, e);
        }

        @Override
        public void checkServerTrusted(X509Certificate[] chain, String type) throws CertificateException {
            newest().checkServerTrusted(chain, type);
        }

        @Override
        public void checkServerTrusted(X509Certificate[] chain, String type, Socket s) throws CertificateException {
            newest().checkServerTrusted(chain, type, s);
        }

        @Override
        public void checkServerTrusted(X509Certificate[] chain, String type, SSLEngine e) throws CertificateException {
            newest().checkServerTrusted(chain, type, e);
        }

        @Override
        public X509Certificate[] getAcceptedIssuers() {
            try {
                return newest().getAcceptedIssuers();
            } catch (CertificateException e) {
                return new X509Certificate[0];
            }
        }
    }

    static void serve(SSLContext context, int port) throws IOException {
        SSLServerSocket listener = (SSLServerSocket) context.getServerSocketFactory()
                .createServerSocket(port, 50, java.net.InetAddress.getLoopbackAddress());
        listener.setNeedClientAuth(true);
        listener.setEnabledProtocols(new String[] {"TLSv1.3"});
        while (true) {
            SSLSocket socket = (SSLSocket) listener.accept();
            new Thread(() -> greet(socket)).start();
        }
    }

    static void greet(SSLSocket socket) {
        try (socket) {
            socket.startHandshake();
            X509Certificate client = (X509Certificate) socket.getSession().getPeerCertificates()[0];
            socket.getOutputStream().write(("hello " + client.getSubjectAlternativeNames() + "\n").getBytes());
        } catch (IOException | CertificateException e) {
            System.err.println("refused: " + e);
        }
    }

    static void call(SSLContext context, int port, String name) throws IOException {
        Socket connection = new Socket("127.0.0.1", port);
        try (SSLSocket socket = (SSLSocket) context.getSocketFactory().createSocket(connection, name, port, true)) {
            SSLParameters parameters = socket.getSSLParameters();
            parameters.setEndpointIdentificationAlgorithm("HTTPS"); // compares the name
            socket.setSSLParameters(parameters);
            System.out.print(new String(socket.getInputStream().readAllBytes()));
            X509Certificate server = (X509Certificate) socket.getSession().getPeerCertificates()[0];
            System.out.println("serial " + server.getSerialNumber().toString(16));
        }
    }
}
