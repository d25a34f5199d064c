// A drive's temperature, found from a file on it in a tree such as Linux' sysfs.
#include "io/drive_temperature.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <fstream>

#include "tests/io/gguf_files.h"

namespace offstage {
namespace {

using ::testing::ElementsAre;
namespace fs = std::filesystem;

class DriveTemperatureTest : public ::testing::Test {
 protected:
  void SetUp() override { testing::write_file(file_, {}); }
  // The file lies on a drive whose block device is at `place` of the tree.
  void put_drive_at(const std::string& place) {
    struct stat facts = {};
    ASSERT_EQ(stat(file_.c_str(), &facts), 0);
    fs::create_directories(sys_ / place);
    fs::create_directories(sys_ / "dev/block");
    fs::create_directory_symlink(
        sys_ / place,
        sys_ / fmt::format("dev/block/{}:{}", major(facts.st_dev), minor(facts.st_dev)));
  }
  void put(const std::string& path, const std::string& text) {
    fs::create_directories(fs::path(sys_ / path).parent_path());
    std::ofstream(sys_ / path) << text << "\n";
  }
  void put_sensor(const std::string& place, const std::string& driver, const std::string& value) {
    put(place + "/name", driver);
    put(place + "/temp1_input", value);
  }
  int16_t celsius() {
    const std::vector<std::string> paths = {file_};
    return DriveThermometers(paths, sys_.path()).read(0)[0];
  }

  testing::TempFolder folder_, sys_;
  const std::string file_ = folder_ / "model.gguf";
};

TEST_F(DriveTemperatureTest, OfThePartitionsNvmeController) {
  put_drive_at("devices/pci0/0000:01:00.0/nvme/nvme0/nvme0n1/nvme0n1p2");
  put_sensor("devices/pci0/0000:01:00.0/nvme/nvme0/hwmon1", "nvme", "41850");
  put_sensor("devices/pci0/hwmon/hwmon0", "chipset", "99000");
  EXPECT_EQ(celsius(), 41);
}

// With several paths to a drive its block device is below nvme-subsys0, beside the controllers.
TEST_F(DriveTemperatureTest, OfOneOfSeveralControllers) {
  put_drive_at("devices/virtual/nvme-subsystem/nvme-subsys0/nvme0n1");
  put_sensor("devices/pci0/nvme/nvme3/hwmon/hwmon4", "nvme", "-2000");
  fs::create_directory_symlink(sys_ / "devices/pci0/nvme/nvme3",
                               sys_ / "devices/virtual/nvme-subsystem/nvme-subsys0/nvme3");
  EXPECT_EQ(celsius(), -2);
}

TEST_F(DriveTemperatureTest, OfASataDrive) {
  put_drive_at("devices/pci0/ata1/host0/target0:0:0/0:0:0:0/block/sda/sda1");
  put_sensor("devices/pci0/ata1/host0/target0:0:0/0:0:0:0/hwmon/hwmon2", "drivetemp", "30000");
  EXPECT_EQ(celsius(), 30);
}

TEST_F(DriveTemperatureTest, NothingThatIsNoDrivesOrNoNumber) {
  EXPECT_EQ(celsius(), kNoTemperature);  // a file system without a block device
  put_drive_at("devices/pci0/virtio1/block/vda");
  put_sensor("devices/pci0/hwmon/hwmon0", "chipset", "99000");
  EXPECT_EQ(celsius(), kNoTemperature);
  put_sensor("devices/pci0/virtio1/block/vda/hwmon0", "drivetemp", "warm");
  EXPECT_EQ(celsius(), kNoTemperature);
  const std::vector<std::string> nowhere = {"/no/such/file"};
  EXPECT_THAT(DriveThermometers(nowhere).read(0), ElementsAre(kNoTemperature));
}

TEST_F(DriveTemperatureTest, IsAskedSeldom) {
  put_drive_at("devices/sda");
  put_sensor("devices/sda/hwmon0", "drivetemp", "30000");
  const std::vector<std::string> paths = {file_};
  DriveThermometers thermometers(paths, sys_.path());
  EXPECT_EQ(thermometers.read(7)[0], 30);
  put_sensor("devices/sda/hwmon0", "drivetemp", "55000");
  EXPECT_EQ(thermometers.read(6 + DriveThermometers::kReadEveryNs)[0], 30);
  EXPECT_EQ(thermometers.read(7 + DriveThermometers::kReadEveryNs)[0], 55);
}

}  // namespace
}  // namespace offstage
