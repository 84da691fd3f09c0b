import java.io.FileInputStream;
import java.security.Key;
import java.security.KeyStore;
import java.security.MessageDigest;
import java.security.cert.Certificate;
import java.util.Collections;
import java.util.HexFormat;
import java.util.TreeSet;

/** Lists the entries of key stores, with hashes of keys and certificates. */
public class ListKeyStores {
    /** The arguments are triples: the kind of the store, its path, and its password. */
    public static void main(String[] args) throws Exception {
        for (int i = 0; i < args.length; i += 3) {
            char[] password = args[i + 2].toCharArray();
            KeyStore store = KeyStore.getInstance(args[i]);
            try (FileInputStream in = new FileInputStream(args[i + 1])) {
                store.load(in, password);
            }
            for (String alias : new TreeSet<>(Collections.list(store.aliases()))) {
                System.out.print(args[i + 1] + " " + alias);
                if (store.isKeyEntry(alias)) {
                    Key key = store.getKey(alias, password);
                    System.out.print(" key " + hash(key.getEncoded()));
                    for (Certificate certificate : store.getCertificateChain(alias)) {
                        System.out.print(" " + hash(certificate.getEncoded()));
                    }
                } else if (store.isCertificateEntry(alias)) {
                    System.out.print(" trusted " + hash(store.getCertificate(alias).getEncoded()));
                }
                System.out.println();
            }
        }
    }

    private static String hash(byte[] data) throws Exception {
        return HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(data));
    }
}
