// Restore one frame with a bundle's frame graph in C++: no Python, no photonstep.
//
//     unzip my.photonstep frame_1.onnx
//     restore_frame frame_1.onnx raw.pgm restored.pgm OFFSET_ADU GAIN_E_PER_ADU READOUT_NOISE_E [CORR_Y CORR_X]
//
// Frames are binary PGM (P5), 8 or 16 bit. It uses OpenVINO's C++ interface because its Python wheel brings headers and
// libraries along, so it builds wherever photonstep is installed; ONNX Runtime runs the same graph (docs/embedding.md).
// Build lines are in docs/embedding.md and CMakeLists.txt.

#include <array>
#include <cctype>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iostream>
#include <openvino/openvino.hpp>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

struct Frame {
    std::size_t height = 0, width = 0;
    std::vector<std::uint16_t> counts;  // row by row
};

constexpr std::size_t smallest_side_px = 16, largest_side_px = 8192;

// The next whole number of a PGM header; white space and comments come before it.
std::size_t header_number(std::istream& file, const std::string& path, const char* what) {
    while (std::isspace(file.peek()) || file.peek() == '#') {
        if (file.get() == '#') {
            std::string comment;
            std::getline(file, comment);
        }
    }
    std::size_t number = 0;
    if (!std::isdigit(file.peek()) || !(file >> number)) {
        throw std::runtime_error(path + ": its header has no " + what + "; expected a binary PGM (P5)");
    }
    return number;
}

Frame read_pgm(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error(path + " cannot be opened; check the path");
    std::array<char, 2> magic{};
    if (!file.read(magic.data(), 2) || magic[0] != 'P' || magic[1] != '5') {
        throw std::runtime_error(path + " is not a binary PGM (P5); convert the frame");
    }
    Frame frame;
    frame.width = header_number(file, path, "width");
    frame.height = header_number(file, path, "height");
    const std::size_t full = header_number(file, path, "largest value");
    for (const std::size_t side : {frame.width, frame.height}) {
        if (side < smallest_side_px || side > largest_side_px) {
            throw std::runtime_error(path + " is " + std::to_string(frame.width) + "x" + std::to_string(frame.height) +
                                     " px; expected 16 to 8192 px a side");
        }
    }
    if (full < 1 || full > 65535) {
        throw std::runtime_error(path + ": largest value " + std::to_string(full) + "; expected 1 to 65535");
    }
    file.get();  // one white space ends the header
    const std::size_t pixels = frame.height * frame.width, bytes_each = full > 255 ? 2 : 1;
    std::vector<unsigned char> bytes(pixels * bytes_each);
    if (!file.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()))) {
        throw std::runtime_error(path + " ends too early: " + std::to_string(file.gcount()) + " bytes of pixels; expected " +
                                 std::to_string(bytes.size()));
    }
    frame.counts.resize(pixels);
    for (std::size_t i = 0; i < pixels; ++i) {  // PGM is big-endian
        frame.counts[i] = bytes_each == 1 ? bytes[i] : static_cast<std::uint16_t>(bytes[2 * i] << 8 | bytes[2 * i + 1]);
    }
    return frame;
}

void write_pgm(const std::string& path, const std::uint16_t* counts, std::size_t height, std::size_t width) {
    if (std::ifstream(path)) throw std::runtime_error(path + " exists; choose another name");
    std::ofstream file(path, std::ios::binary);
    file << "P5\n" << width << ' ' << height << "\n65535\n";
    for (std::size_t i = 0; i < height * width; ++i) {
        file.put(static_cast<char>(counts[i] >> 8)).put(static_cast<char>(counts[i] & 0xFF));
    }
    file.close();
    if (!file) throw std::runtime_error(path + " cannot be written; check the folder and the free space");
}

float number(const char* text, const char* what, float least, float most) {
    char* end = nullptr;
    const float value = std::strtof(text, &end);
    if (end == text || *end != '\0' || !std::isfinite(value) || value < least || value > most) {
        throw std::runtime_error(std::string(what) + " is '" + text + "'; expected a number from " +
                                 std::to_string(least) + " to " + std::to_string(most));
    }
    return value;
}

void restore(int count, char** arguments) {
    const std::string graph = arguments[1], raw = arguments[2], restored = arguments[3];
    float offset_adu = number(arguments[4], "OFFSET_ADU", -1e6F, 1e6F);
    float gain_e_per_adu = number(arguments[5], "GAIN_E_PER_ADU", 1e-6F, 1e6F);
    float readout_noise_e = number(arguments[6], "READOUT_NOISE_E", 0.0F, 1e6F);
    std::array<float, 2> noise_correlation{};
    for (int axis = 0; count == 9 && axis < 2; ++axis) {
        noise_correlation[axis] = number(arguments[7 + axis], "CORR", -0.99F, 0.99F);
    }
    Frame frame = read_pgm(raw);

    ov::Core core;
    // float32 gives the pixels of the Python runtime within one count; bf16, the default where the CPU has it, is faster
    ov::CompiledModel model = core.compile_model(graph, "CPU", ov::hint::inference_precision(ov::element::f32));
    ov::InferRequest request = model.create_infer_request();
    request.set_tensor("frame", ov::Tensor(ov::element::u16, {frame.height, frame.width}, frame.counts.data()));
    request.set_tensor("offset_adu", ov::Tensor(ov::element::f32, {}, &offset_adu));
    request.set_tensor("gain_e_per_adu", ov::Tensor(ov::element::f32, {}, &gain_e_per_adu));
    request.set_tensor("readout_noise_e", ov::Tensor(ov::element::f32, {}, &readout_noise_e));
    request.set_tensor("noise_correlation", ov::Tensor(ov::element::f32, {2}, noise_correlation.data()));
    request.infer();  // in a live loop: compile once, then set "frame" and infer for every frame

    const ov::Tensor image = request.get_tensor("restored");
    write_pgm(restored, image.data<std::uint16_t>(), image.get_shape()[0], image.get_shape()[1]);
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 7 && count != 9) {
        std::cerr << "usage: restore_frame frame_K.onnx raw.pgm restored.pgm OFFSET_ADU GAIN_E_PER_ADU READOUT_NOISE_E "
                     "[CORR_Y CORR_X]\n";
        return 2;
    }
    try {
        restore(count, arguments);
    } catch (const std::exception& error) {
        std::cerr << "restore_frame: " << error.what() << '\n';
        return 1;
    }
    return 0;
}
