// Validates many Structured Reports in one JVM with PixelMed's DicomSRValidator, which reports but never fails.
// Each line of its answer goes out as PATH <tab> LINE; tests/support/validators.py judges them.
import com.pixelmed.validate.DicomSRValidator;

public class PmSRBatch {
  public static void main(String[] paths) throws Exception {
    DicomSRValidator validator = new DicomSRValidator();
    validator.setOptionCheckContentItemOrder(true);
    for (String path : paths) {
      String answer;
      try {
        answer = validator.validate(path);
      } catch (Throwable e) {
        answer = "Error: exception " + e;
      }
      for (String line : answer.split("\n")) {
        System.out.println(path + "\t" + line);
      }
    }
  }
}
