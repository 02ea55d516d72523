import java.io.IOException;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.regex.Pattern;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.serialization.StringDeserializer;

/**
 * Reads one topic for each codec with the Java client, and prints what it found as JSON lines.
 *
 * <p>Owns: what `kafka-clients` does with each codec. Promises: a line with its version, then a line for each topic, with the
 * ids of its first COUNT events or with the client's error. Leaves the judgement to checks/kafka_codecs.py.
 *
 * <p>Arguments: BROKERS COUNT CODEC=TOPIC...
 */
public final class KafkaCodecs {
    private static final Duration LIMIT = Duration.ofSeconds(20);
    // The first one in an envelope is its own. The JDK has no reader of JSON.
    private static final Pattern ID = Pattern.compile("\"id\": ?\"([^\"]+)\"");

    public static void main(String[] arguments) throws IOException {
        var about = new Properties();
        try (var file = KafkaConsumer.class.getResourceAsStream("/kafka/kafka-version.properties")) {
            about.load(file);
        }
        System.out.printf("{\"version\": \"%s\"}%n", about.getProperty("version"));
        for (int at = 2; at < arguments.length; at++) {
            String[] place = arguments[at].split("=");
            String found;
            try {
                List<String> ids = read(arguments[0], Integer.parseInt(arguments[1]), place[1]);
                found = "\"ids\": [" + String.join(", ", ids) + "]";
            } catch (RuntimeException | LinkageError error) { // a codec whose library is missing is a LinkageError
                found = "\"error\": \"" + error.toString().replaceAll("[\\\\\"\\p{Cntrl}]", " ") + "\"";
            }
            System.out.printf("{\"codec\": \"%s\", %s}%n", place[0], found);
        }
    }

    private static List<String> read(String brokers, int count, String topic) {
        Map<String, Object> settings = Map.of(
            "bootstrap.servers", brokers, "group.id", topic + ".java", "auto.offset.reset", "earliest");
        List<String> ids = new ArrayList<>();
        try (var consumer = new KafkaConsumer<>(settings, new StringDeserializer(), new StringDeserializer())) {
            consumer.subscribe(List.of(topic));
            long end = System.nanoTime() + LIMIT.toNanos();
            while (ids.size() < count && System.nanoTime() < end) {
                for (ConsumerRecord<String, String> record : consumer.poll(Duration.ofSeconds(1))) {
                    var id = ID.matcher(record.value());
                    ids.add(id.find() ? '"' + id.group(1) + '"' : "null");
                }
            }
        }
        return ids;
    }
}
